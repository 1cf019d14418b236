/* libcuda.so.1 without a GPU: enough of the driver for Triton's host code. cuLaunchKernelEx records the launch and runs nothing.
   What a real driver punishes is an error here too: a function of an unloaded module, or of another device's context; loading a module
   while a stream is captured. */
#define _GNU_SOURCE
#include "cuda.h"
#include <stdlib.h>
#include <string.h>

typedef struct { int device, alive; } Module;
typedef struct { Module *module; } Function;
typedef struct {
  unsigned grid[3], threads, shared, attributes;
  unsigned long long stream, function;
  unsigned attribute[4];
} Launch;

static __thread int current;
static int devices = 1, major = 9, minor = 0, capturing;
static long counts[3]; /* launches, loads, unloads */
static Launch last;
static unsigned char parameters[128 * 16];
static int sizes[128], n_sizes;

void stub_config(int n, int maj, int min) { devices = n, major = maj, minor = min; }
void stub_capture(int on) { capturing = on; }
int stub_capturing(void) { return capturing; }
void stub_sizes(int n, const int *s) { n_sizes = n; memcpy(sizes, s, n * sizeof(int)); }
long stub_count(int what) { return __atomic_load_n(&counts[what], __ATOMIC_SEQ_CST); }
const void *stub_last(void) { return &last; }
const void *stub_parameters(void) { return parameters; }
int stub_get_device(void) { return current; }
void stub_set_device(int device) { current = device; }

static void count(int what) { __atomic_add_fetch(&counts[what], 1, __ATOMIC_SEQ_CST); }
static CUcontext context(int device) { return (CUcontext)(size_t)(0x100 + device); }

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) { *v = 12080; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **s) {
  *s = e == CUDA_ERROR_INVALID_CONTEXT ? "stub: other device's context" : "stub: invalid handle";
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *n) { *n = devices; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *c) { *c = context(current); return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { current = (int)(size_t)c - 0x100; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *d) { *d = current; return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *v, CUlimit l) { *v = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit l, size_t v) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { *c = context(d); return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
  switch ((int)a) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *v = major; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *v = minor; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *v = 232448; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *v = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *v = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *v = 32; break;
  default: *v = 65536;
  }
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *m, const void *image) {
  if (memcmp(image, "\177ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
  if (capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  Module *module = malloc(sizeof *module);
  module->device = current, module->alive = 1;
  *m = (CUmodule)module;
  count(1);
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule m) { ((Module *)m)->alive = 0; count(2); return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
  Function *function = malloc(sizeof *function);
  function->module = (Module *)m;
  *f = (CUfunction)function;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : a == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream s, CUstreamCaptureStatus *status) {
  *status = capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *v, CUpointer_attribute a, CUdeviceptr p) { *(CUdeviceptr *)v = p; return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *n, CUfunction f, const CUlaunchConfig *c) { *n = 1; return CUDA_SUCCESS; }
CUresult cuTensorMapEncodeTiled(CUtensorMap *t, CUtensorMapDataType d, cuuint32_t r, void *p, const cuuint64_t *gd, const cuuint64_t *gs,
                                const cuuint32_t *bd, const cuuint32_t *es, CUtensorMapInterleave i, CUtensorMapSwizzle s,
                                CUtensorMapL2promotion l, CUtensorMapFloatOOBfill o) {
  memset(t, 0, sizeof *t);
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
  Function *function = (Function *)f;
  if (!function || !function->module->alive) return CUDA_ERROR_INVALID_HANDLE;
  if (function->module->device != current) return CUDA_ERROR_INVALID_CONTEXT;
  count(0);
  last.grid[0] = c->gridDimX, last.grid[1] = c->gridDimY, last.grid[2] = c->gridDimZ;
  last.threads = c->blockDimX, last.shared = c->sharedMemBytes, last.attributes = c->numAttrs;
  last.stream = (unsigned long long)c->hStream, last.function = (unsigned long long)f;
  for (unsigned i = 0; i < 4; i++) last.attribute[i] = i < c->numAttrs ? (unsigned)c->attrs[i].id : 0;
  for (int i = 0; i < n_sizes; i++) memcpy(parameters + 16 * i, params[i], sizes[i]);
  return CUDA_SUCCESS;
}
