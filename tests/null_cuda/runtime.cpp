// The CUDA runtime without a GPU: kernels do nothing, everything else is as it should be. Device memory is memory of
// the host that no kernel touches, streams and events keep order, and a capture fails for what CUDA forbids in one.
//
// NULL_CUDA_GIB: size of the device. NULL_CUDA_TRUE=1: a flag that is read to the host is true.

#include <dlfcn.h>
#include <sys/mman.h>

#include <cstring>

#include "state.h"

// Counts for whoever measures, and the launches of the other libraries.
API long null_launches() { return launches; }
API long null_graph_launches() { return graph_launches; }
API int null_launch(void* stream) { return launch(static_cast<cudaStream_t>(stream), "kernel of a library"); }
API size_t null_total() { return total(); }

// Devices
API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
API cudaError_t cudaSetDevice(int device) { return current_device = device, cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaDeviceSynchronize() { return require_no_capture("cudaDeviceSynchronize"); }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA GeForce RTX 4090");
  p->totalGlobalMem = total();
  p->major = 8, p->minor = 9, p->multiProcessorCount = 128, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 1536, p->maxBlocksPerMultiProcessor = 24;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = 101376, p->sharedMemPerMultiprocessor = 102400;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 72 << 20, p->memoryBusWidth = 384, p->totalConstMem = 65536, p->textureAlignment = 512;
  p->unifiedAddressing = p->cooperativeLaunch = p->concurrentKernels = p->canMapHostMemory = 1;
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, 0);
  const std::map<int, int> known = {
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrComputeCapabilityMajor, p.major},
      {cudaDevAttrComputeCapabilityMinor, p.minor},
      {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 101376},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 102400},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 1536},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
      {cudaDevAttrMaxGridDimX, 2147483647},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64},
      {cudaDevAttrL2CacheSize, 72 << 20},
      {cudaDevAttrClockRate, 2520000},
      {cudaDevAttrMemoryClockRate, 10501000},
      {cudaDevAttrGlobalMemoryBusWidth, 384},
      {cudaDevAttrUnifiedAddressing, 1},
  };
  auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  return *pool = reinterpret_cast<cudaMemPool_t>(8), cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) {
  return snprintf(id, size, "0000:01:00.0"), cudaSuccess;
}
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

// Errors
API cudaError_t cudaPeekAtLastError() { return last_error; }
API cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
API const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
API const char* cudaGetErrorString(cudaError_t error) {
  static thread_local char text[32];
  return snprintf(text, sizeof text, "error %d", static_cast<int>(error)), text;
}

// Memory
API cudaError_t cudaMalloc(void** at, size_t size) {
  TRY(require_no_capture("cudaMalloc"));
  Lock lock(guard);
  if (used + size > total()) return fail(cudaErrorMemoryAllocation);
  void* block = mmap(nullptr, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (block == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  device_blocks[static_cast<char*>(block)] = size;
  used += size;
  return *at = block, cudaSuccess;
}
API cudaError_t cudaFree(void* at) {
  if (!at) return cudaSuccess;
  TRY(require_no_capture("cudaFree"));
  Lock lock(guard);
  auto block = device_blocks.find(static_cast<char*>(at));
  if (block == device_blocks.end()) return fail(cudaErrorInvalidValue);
  munmap(at, block->second + 4096);
  used -= block->second;
  device_blocks.erase(block);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* free, size_t* all) {
  Lock lock(guard);
  return *all = total(), *free = total() - used, cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** at, size_t size, unsigned) {
  TRY(require_no_capture("cudaHostAlloc"));
  *at = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  return cudaHostRegister(*at, size, 0);
}
API cudaError_t cudaFreeHost(void* at) { return cudaHostUnregister(at), free(at), cudaSuccess; }
API cudaError_t cudaHostRegister(void* at, size_t size, unsigned) {
  Lock lock(guard);
  return host_blocks[static_cast<char*>(at)] = size, cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* at) {
  Lock lock(guard);
  return host_blocks.erase(static_cast<char*>(at)), cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* at) {
  memset(found, 0, sizeof *found);
  found->type = is_inside(device_blocks, at) ? cudaMemoryTypeDevice
                : is_inside(host_blocks, at) ? cudaMemoryTypeHost
                                             : cudaMemoryTypeUnregistered;
  found->devicePointer = const_cast<void*>(at);
  found->hostPointer = found->type == cudaMemoryTypeHost ? const_cast<void*>(at) : nullptr;
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  TRY(require_no_capture("cudaMemcpy"));
  return memmove(to, from, size), cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  bool is_from_host = !is_inside(device_blocks, from), is_to_host = !is_inside(device_blocks, to);
  Capture* capture = stream_of(stream)->capture;
  bool is_pageable = (is_from_host && !is_inside(host_blocks, from)) || (is_to_host && !is_inside(host_blocks, to));
  if (capture && is_pageable)
    return invalidate(capture, "a copy of pageable memory in a capture", cudaErrorStreamCaptureUnsupported);
  if (capture && (is_from_host || is_to_host)) say("a copy between host and device in a capture");
  launch(stream, "copy");
  if (size == 1 && is_to_host && !is_from_host && getenv("NULL_CUDA_TRUE"))
    return *static_cast<char*>(to) = 1, cudaSuccess;
  if (is_from_host || is_to_host || size < (1 << 20)) memmove(to, from, size);  // large ones would fill the memory
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* at, int value, size_t size, cudaStream_t stream) {
  launch(stream, "memset");
  if (size < (1 << 20)) memset(at, value, size);
  return cudaSuccess;
}
API cudaError_t cudaMemset(void* at, int value, size_t size) { return cudaMemsetAsync(at, value, size, nullptr); }
API cudaError_t cudaGetSymbolAddress(void** at, const void*) { return *at = calloc(1, 1 << 16), cudaSuccess; }

// Kernels
namespace {
struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local Configuration configurations[8];
thread_local int depth = 0;

cudaError_t launch_kernel(dim3 grid, dim3 block, cudaStream_t stream) {
  bool is_empty = !grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z;
  if (is_empty || block.x * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535)
    return say("a launch with an impossible grid"), fail(cudaErrorInvalidConfiguration);
  return launch(stream, "kernel");
}
}  // namespace

API void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(malloc(8)); }
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* stream) {
  return configurations[depth++] = {grid, block, shared, stream}, 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  Configuration& found = configurations[--depth];
  *grid = found.grid, *block = found.block, *shared = found.shared;
  return *static_cast<cudaStream_t*>(stream) = found.stream, cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function)), cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
  return launch_kernel(grid, block, stream);
}
API cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
  return launch_kernel(grid, block, stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* given, const void*, void**) {
  return launch_kernel(given->gridDim, given->blockDim, given->stream);
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->maxDynamicSharedSizeBytes = 49152;
  found->binaryVersion = found->ptxVersion = 86;  // of the kernels that PyTorch has for this card
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* count, const void*, int, size_t, unsigned) {
  return *count = 2, cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : nullptr;
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
