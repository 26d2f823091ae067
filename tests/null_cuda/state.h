// What the parts of the runtime share.

#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#define API extern "C" __attribute__((visibility("default")))
#define TRY(call)                                   \
  do {                                              \
    if (cudaError_t error_ = (call)) return error_; \
  } while (0)

struct Capture;

struct Stream {
  Capture* capture = nullptr;
};

struct Capture {
  Stream* origin;
  unsigned long long id;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::set<Stream*> joined;
  bool is_invalid = false;
};

struct Event {
  double milliseconds = 0;
  unsigned long long capture = 0;
  Stream* stream = nullptr;
};

inline std::recursive_mutex guard;
inline Stream default_stream;
inline std::set<Capture*> captures;
inline std::map<const char*, size_t> device_blocks, host_blocks;
inline size_t used = 0;
inline long launches = 0, graph_launches = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
inline thread_local int current_device = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

inline size_t total() {
  const char* given = getenv("NULL_CUDA_GIB");
  return static_cast<size_t>((given ? atof(given) : 24.0) * (1ull << 30));
}

inline double now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline void say(const std::string& text) { fprintf(stderr, "null CUDA: %s\n", text.c_str()); }

inline cudaError_t fail(cudaError_t error) { return last_error = error; }

inline Stream* stream_of(cudaStream_t stream) {
  return reinterpret_cast<size_t>(stream) <= 2 ? &default_stream : reinterpret_cast<Stream*>(stream);
}

inline cudaError_t invalidate(Capture* capture, const std::string& why, cudaError_t error) {
  capture->is_invalid = true;
  say(why);
  return fail(error);
}

// Calls that CUDA forbids to a thread that captures, because they could wait for the captured work.
inline cudaError_t require_no_capture(const char* name) {
  Lock lock(guard);
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (Capture* capture : captures) {
    bool is_own = capture->thread == std::this_thread::get_id();
    if (capture->mode == cudaStreamCaptureModeGlobal || (capture->mode == cudaStreamCaptureModeThreadLocal && is_own))
      return invalidate(capture, std::string("forbidden in a capture: ") + name, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

inline cudaError_t require_not_capturing(cudaStream_t stream, const char* name) {
  Lock lock(guard);
  if (Capture* capture = stream_of(stream)->capture)
    return invalidate(capture, std::string("waits for a capturing stream: ") + name, cudaErrorStreamCaptureUnsupported);
  return cudaSuccess;
}

// A kernel outside of the capture that its thread is making would be missing in every replay.
inline cudaError_t launch(cudaStream_t stream, const char* what) {
  Lock lock(guard);
  ++launches;
  if (!stream_of(stream)->capture)
    for (Capture* capture : captures)
      if (capture->thread == std::this_thread::get_id()) say(std::string(what) + " beside the capture of its thread");
  return cudaSuccess;
}

inline bool is_inside(const std::map<const char*, size_t>& blocks, const void* at) {
  Lock lock(guard);
  auto next = blocks.upper_bound(static_cast<const char*>(at));
  if (next == blocks.begin()) return false;
  --next;
  return static_cast<const char*>(at) < next->first + next->second;
}

inline cudaStreamCaptureStatus status_of(Capture* capture) {
  if (!capture) return cudaStreamCaptureStatusNone;
  return capture->is_invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}
