/* The part of ONNX Runtime's C API that cpips_compare.c calls, for machines that have the library but not its headers: the
 * wheel of the Python package onnxruntime holds the one and not the other. Where onnxruntime_c_api.h is found, it is used.
 *
 * The API is one table of functions, to which new versions only append: these are of version 1, with their places in it. */
#ifndef ORT_SUBSET_H
#define ORT_SUBSET_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 1

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtAllocator OrtAllocator;

enum { ORT_LOGGING_LEVEL_ERROR = 3, OrtArenaAllocator = 1, OrtMemTypeDefault = 0 };
enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7 };

#define UNUSED(first, last) void (*unused_##first[(last) - (first) + 1])(void)

typedef struct OrtApi {
    UNUSED(0, 1);
    const char *(*GetErrorMessage)(const OrtStatus *);                                                        /* 2 */
    OrtStatus *(*CreateEnv)(int level, const char *name, OrtEnv **);                                          /* 3 */
    UNUSED(4, 6);
    OrtStatus *(*CreateSession)(const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **);  /* 7 */
    UNUSED(8, 8);
    OrtStatus *(*Run)(OrtSession *, const OrtRunOptions *, const char *const *inputs, const OrtValue *const *given, size_t count,
                      const char *const *outputs, size_t output_count, OrtValue **found);                     /* 9 */
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **);                                                 /* 10 */
    UNUSED(11, 23);
    OrtStatus *(*SetIntraOpNumThreads)(OrtSessionOptions *, int);                                             /* 24 */
    UNUSED(25, 29);
    OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *);                                         /* 30 */
    OrtStatus *(*SessionGetOutputCount)(const OrtSession *, size_t *);                                        /* 31 */
    UNUSED(32, 35);
    OrtStatus *(*SessionGetInputName)(const OrtSession *, size_t, OrtAllocator *, char **);                   /* 36 */
    OrtStatus *(*SessionGetOutputName)(const OrtSession *, size_t, OrtAllocator *, char **);                  /* 37 */
    UNUSED(38, 48);
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *, void *data, size_t bytes, const int64_t *shape,
                                                 size_t axes, int type, OrtValue **);                         /* 49 */
    UNUSED(50, 50);
    OrtStatus *(*GetTensorMutableData)(OrtValue *, void **);                                                  /* 51 */
    UNUSED(52, 68);
    OrtStatus *(*CreateCpuMemoryInfo)(int allocator, int memory, OrtMemoryInfo **);                           /* 69 */
    UNUSED(70, 75);
    OrtStatus *(*AllocatorFree)(OrtAllocator *, void *);                                                      /* 76 */
    UNUSED(77, 77);
    OrtStatus *(*GetAllocatorWithDefaultOptions)(OrtAllocator **);                                            /* 78 */
    UNUSED(79, 91);
    void (*ReleaseEnv)(OrtEnv *);                                                                             /* 92 */
    void (*ReleaseStatus)(OrtStatus *);                                                                       /* 93 */
    void (*ReleaseMemoryInfo)(OrtMemoryInfo *);                                                               /* 94 */
    void (*ReleaseSession)(OrtSession *);                                                                     /* 95 */
    void (*ReleaseValue)(OrtValue *);                                                                         /* 96 */
    UNUSED(97, 99);
    void (*ReleaseSessionOptions)(OrtSessionOptions *);                                                       /* 100 */
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase *OrtGetApiBase(void);

#endif
