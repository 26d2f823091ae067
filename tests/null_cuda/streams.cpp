// Streams, events, captures and graphs of the CUDA runtime.

#include <utility>

#include "state.h"

// Streams and events
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return *stream = reinterpret_cast<cudaStream_t>(new Stream), cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return require_not_capturing(stream, "cudaStreamQuery"); }
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  TRY(require_not_capturing(stream, "cudaStreamSynchronize"));
  return require_no_capture("cudaStreamSynchronize");
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t call, void* data) { return call(data), cudaSuccess; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete reinterpret_cast<Event*>(event), cudaSuccess; }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  Lock lock(guard);
  Stream* at = stream_of(stream);
  *reinterpret_cast<Event*>(event) = Event{now(), at->capture ? at->capture->id : 0, at};
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
API cudaError_t cudaEventQuery(cudaEvent_t) { return require_no_capture("cudaEventQuery"); }
API cudaError_t cudaEventSynchronize(cudaEvent_t) { return require_no_capture("cudaEventSynchronize"); }
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  double passed = reinterpret_cast<Event*>(to)->milliseconds - reinterpret_cast<Event*>(from)->milliseconds;
  return *milliseconds = passed > 1e-3 ? static_cast<float>(passed) : 1e-3f, cudaSuccess;
}

// A stream that waits for a captured event joins the capture; the capture's own stream has to wait for it in the end.
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(guard);
  Stream* waiting = stream_of(stream);
  Event* awaited = reinterpret_cast<Event*>(event);
  if (!awaited->stream) return cudaSuccess;
  for (Capture* capture : captures) {
    if (capture->id != awaited->capture) continue;
    if (waiting == capture->origin) return capture->joined.erase(awaited->stream), cudaSuccess;
    if (waiting->capture) return cudaSuccess;
    if (waiting == &default_stream)
      return invalidate(capture, "the default stream waits for a capture", cudaErrorStreamCaptureImplicit);
    waiting->capture = capture;
    capture->joined.insert(waiting);
    return cudaSuccess;
  }
  if (waiting->capture && !awaited->capture)
    return invalidate(waiting->capture, "a capture waits for work outside of it", cudaErrorStreamCaptureIsolation);
  return cudaSuccess;
}

// Captures and graphs
API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  static unsigned long long next = 1;
  Lock lock(guard);
  Stream* at = stream_of(stream);
  if (at == &default_stream || at->capture) return fail(cudaErrorStreamCaptureUnsupported);
  at->capture = new Capture{at, next++, mode, std::this_thread::get_id()};
  captures.insert(at->capture);
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Lock lock(guard);
  Capture* capture = stream_of(stream)->capture;
  if (!capture) return fail(cudaErrorIllegalState);
  for (Stream* joined : capture->joined) joined->capture = nullptr;
  capture->origin->capture = nullptr;
  captures.erase(capture);
  *graph = nullptr;
  if (capture->is_invalid) return fail(cudaErrorStreamCaptureInvalidated);
  if (!capture->joined.empty())
    return say("a stream has joined the capture and not come back"), fail(cudaErrorStreamCaptureUnjoined);
  return *graph = reinterpret_cast<cudaGraph_t>(calloc(1, 64)), cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(guard);
  return *status = status_of(stream_of(stream)->capture), cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                                         const cudaGraphEdgeData** edges, size_t* count) {
  Lock lock(guard);
  Capture* capture = stream_of(stream)->capture;
  if (status) *status = status_of(capture);
  if (id && capture) *id = capture->id;
  if (graph) *graph = capture ? reinterpret_cast<cudaGraph_t>(capture) : nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(thread_mode, *mode), cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long) {
  return *instance = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long) {
  return *instance = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
  return ++graph_launches, launch(stream, "graph");
}
