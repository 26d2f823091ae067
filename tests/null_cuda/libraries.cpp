// cuBLAS, cuBLASLt, cuDNN (the functions of its API of version 7), NCCL on one rank, and the driver: kernels do
// nothing. Functions that are not here do nothing and answer 0; build.py makes them.

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define API extern "C" __attribute__((visibility("default")))
#define CREATE(name) \
  API int name(void** made) { return *made = calloc(1, 256), 0; }

extern "C" int null_launch(void* stream);
extern "C" size_t null_total();
extern "C" int cudaDeviceGetAttribute(int* value, int attribute, int device);

// cuBLAS. The functions that compute are made by build.py; they take a handle first.
struct Blas {
  void* stream;
  int math, pointers;
};
API int null_launch_blas(Blas* handle) { return null_launch(handle->stream); }
CREATE(cublasCreate_v2)
API int cublasSetStream_v2(Blas* handle, void* stream) { return handle->stream = stream, 0; }
API int cublasGetMathMode(Blas* handle, int* mode) { return *mode = handle->math, 0; }
API int cublasSetMathMode(Blas* handle, int mode) { return handle->math = mode, 0; }
API int cublasGetPointerMode_v2(Blas* handle, int* mode) { return *mode = handle->pointers, 0; }
API int cublasSetPointerMode_v2(Blas* handle, int mode) { return handle->pointers = mode, 0; }

API size_t cublasLtGetVersion() { return 130100; }
CREATE(cublasLtMatmulDescCreate)
CREATE(cublasLtMatmulPreferenceCreate)
CREATE(cublasLtMatrixLayoutCreate)
API int cublasLtMatmul(void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*, void*,
                       size_t, void* stream) {
  return null_launch(stream);
}
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results,
                                       int* count) {
  memset(results, 0, 96);  // one algorithm, state: success
  return *count = 1, 0;
}

// cuDNN
struct Dnn {
  void* stream;
};
API int cudnnGetProperty(int part, int* value) { return *value = part == 0 ? 9 : part == 1 ? 19 : 0, 0; }
API size_t cudnnGetVersion() { return 91900; }
API size_t cudnnGetCudartVersion() { return 13000; }
API const char* cudnnGetErrorString(int) { return "cuDNN"; }
CREATE(cudnnCreate)
API int cudnnSetStream(Dnn* handle, void* stream) { return handle->stream = stream, 0; }
API int cudnnGetStream(Dnn* handle, void** stream) { return *stream = handle->stream, 0; }
CREATE(cudnnCreateTensorDescriptor)
CREATE(cudnnCreateFilterDescriptor)
CREATE(cudnnCreateConvolutionDescriptor)
CREATE(cudnnCreateActivationDescriptor)
CREATE(cudnnCreateDropoutDescriptor)
CREATE(cudnnCreateRNNDescriptor)
CREATE(cudnnCreateRNNDataDescriptor)
CREATE(cudnnCreateCTCLossDescriptor)
CREATE(cudnnCreateSpatialTransformerDescriptor)

struct Algorithm {
  int number, status;
  float time;
  size_t memory;
  int is_deterministic, math, reserved[3];
};
static const size_t WORKSPACE = 16 << 20;
static int one_algorithm(Algorithm* found, int* count) {
  memset(found, 0, sizeof *found);
  found->number = 1, found->memory = WORKSPACE, found->time = 1, found->math = 3;
  return *count = 1, 0;
}
#define CONVOLUTION(kind)                                                                                             \
  API int cudnnGetConvolution##kind##Algorithm_v7(void*, void*, void*, void*, void*, int, int* count, Algorithm* a) { \
    return one_algorithm(a, count);                                                                                   \
  }                                                                                                                   \
  API int cudnnFindConvolution##kind##AlgorithmEx(Dnn* handle, void*, void*, void*, void*, void*, void*, void*, int,  \
                                                  int* count, Algorithm* a, void*, size_t) {                          \
    return one_algorithm(a, count), null_launch(handle->stream);                                                      \
  }                                                                                                                   \
  API int cudnnGetConvolution##kind##WorkspaceSize(void*, void*, void*, void*, void*, int, size_t* size) {            \
    return *size = WORKSPACE, 0;                                                                                      \
  }                                                                                                                   \
  API int cudnnConvolution##kind(Dnn* handle, ...) { return null_launch(handle->stream); }
CONVOLUTION(Forward)
CONVOLUTION(BackwardData)
CONVOLUTION(BackwardFilter)

// NCCL: what a rank sends to itself
static int pass_on(const void* from, void* to, size_t count, int type, void* stream) {
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  if (from != to) memmove(to, from, count * sizes[type]);
  return null_launch(stream);
}
struct UniqueId {
  char bytes[128];
};
API const char* ncclGetErrorString(int) { return "NCCL"; }
API const char* ncclGetLastError(void*) { return ""; }
API int ncclGetVersion(int* version) { return *version = 22809, 0; }
API int ncclGetUniqueId(void* id) { return memset(id, 1, sizeof(UniqueId)), 0; }
API int ncclCommGetAsyncError(void*, int* error) { return *error = 0, 0; }
API int ncclCommInitRankConfig(void** made, int, UniqueId, int, void*) { return *made = calloc(1, 64), 0; }
API int ncclCommInitRankScalable(void** made, int, int, int, void*, void*) { return *made = calloc(1, 64), 0; }
API int ncclAllReduce(void* from, void* to, size_t n, int type, int, void*, void* stream) {
  return pass_on(from, to, n, type, stream);
}
API int ncclBroadcast(void* from, void* to, size_t n, int type, int, void*, void* stream) {
  return pass_on(from, to, n, type, stream);
}
API int ncclAllGather(void* from, void* to, size_t n, int type, void*, void* stream) {
  return pass_on(from, to, n, type, stream);
}
API int ncclReduceScatter(void* from, void* to, size_t n, int type, int, void*, void* stream) {
  return pass_on(from, to, n, type, stream);
}

// The driver, as PyTorch and Triton use it
static long context[64];
API int cuDeviceGet(int* device, int number) { return *device = number, 0; }
API int cuDeviceGetCount(int* count) { return *count = 1, 0; }
API int cuDeviceGetAttribute(int* value, int attribute, int device) {
  return cudaDeviceGetAttribute(value, attribute, device);
}
API int cuCtxGetCurrent(void** found) { return *found = context, 0; }
API int cuCtxGetDevice(int* device) { return *device = 0, 0; }
API int cuDevicePrimaryCtxRetain(void** found, int) { return *found = context, 0; }
API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
API int cuModuleLoadData(void** made, const void*) { return *made = calloc(1, 64), 0; }
API int cuModuleGetFunction(void** made, void*, const char*) { return *made = calloc(1, 64), 0; }
API int cuFuncGetAttribute(int* value, int attribute, void*) { return *value = attribute == 0 ? 1024 : 0, 0; }
API int cuGetErrorString(int, const char** text) { return *text = "driver", 0; }
API int cuPointerGetAttribute(void* value, int, unsigned long long pointer) { return memcpy(value, &pointer, 8), 0; }
API int cuOccupancyMaxActiveClusters(int* count, void*, void*) { return *count = 1, 0; }
struct LaunchConfiguration {
  unsigned grid[3], block[3], shared;
  void* stream;
};
API int cuLaunchKernelEx(LaunchConfiguration* given, void*, void*, void*) { return null_launch(given->stream); }
API int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void* stream, void*,
                       void*) {
  return null_launch(stream);
}
