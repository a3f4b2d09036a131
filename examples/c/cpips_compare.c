/* Distances of images to a reference, by the graphs of cpips in ONNX Runtime:
 *
 *     cpips_compare [-t THREADS] [-n REPEATS] GRAPHS REF.ppm IMG.ppm [IMG.ppm ...]
 *
 * GRAPHS is a folder with embed.onnx and compare.onnx: that of the package cpips-runtime, or one that
 * `cpips export MODEL -o GRAPHS` wrote. Images are binary PPM files (P6, 8 or 16 bits), which ImageMagick, ffmpeg and Pillow write.
 * The reference is encoded once. With -n each pair is compared so many times, and the least time of encoding both images and
 * comparing them follows, in ms.
 *
 * Build, with ONNX Runtime's release in $ORT:
 *
 *     cc -O2 -I$ORT/include cpips_compare.c -L$ORT/lib -lonnxruntime -o cpips_compare
 *
 * Exit codes: 0 success; 1 some images could not be compared; 2 wrong usage or input. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#if defined(__has_include)
#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#define HAVE_ORT_HEADER
#endif
#endif
#ifndef HAVE_ORT_HEADER
#include "ort_subset.h"
#endif

#define MAX_SIDE 16384
#define MAX_MAPS 256 /* features of an image */

static const OrtApi *ort;

typedef struct {
    int64_t shape[4]; /* 1, 3, height, width */
    float *pixels;    /* red, green, blue in [0,1] */
} Image;

typedef struct {
    OrtSession *session;
    size_t inputs, outputs;
    char *input[2 * MAX_MAPS + 1], *output[MAX_MAPS];
} Graph;

static void fail(const char *what, const char *why) {
    fprintf(stderr, "cpips_compare: error: %s: %s\n", what, why);
}

/* Whether a call of the API succeeded; prints its message if it did not. */
static int done(OrtStatus *status, const char *what) {
    if (status == NULL) return 1;
    fail(what, ort->GetErrorMessage(status));
    ort->ReleaseStatus(status);
    return 0;
}

/* ---- images ------------------------------------------------------------------------------------------------------- */

/* The next number of a PPM header, 1 to limit; 0 if there is none. */
static long header_number(FILE *file, long limit) {
    int c = fgetc(file);
    long value = 0;
    while (c == ' ' || (c >= '\t' && c <= '\r') || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF) c = fgetc(file);
        c = fgetc(file);
    }
    for (; c >= '0' && c <= '9'; c = fgetc(file)) {
        value = 10 * value + (c - '0');
        if (value > limit) return 0;
    }
    return c == ' ' || (c >= '\t' && c <= '\r') ? value : 0; /* one character of white space ends it */
}

static int read_ppm(const char *path, Image *image) {
    struct stat status;
    FILE *file = NULL;
    unsigned char *row = NULL;
    const char *why = NULL;
    long width, height, white;
    image->pixels = NULL;
    if (stat(path, &status) != 0) {
        fail(path, strerror(errno));
        return 0;
    }
    if (!S_ISREG(status.st_mode)) { /* a named pipe would be waited for */
        fail(path, "is no regular file: give a binary PPM file");
        return 0;
    }
    if ((file = fopen(path, "rb")) == NULL) {
        fail(path, strerror(errno));
        return 0;
    }
    if (fgetc(file) != 'P' || fgetc(file) != '6') {
        why = "is no binary PPM file (P6): convert it, with `convert IMAGE -alpha off IMAGE.ppm` say";
    } else if ((width = header_number(file, MAX_SIDE)) == 0 || (height = header_number(file, MAX_SIDE)) == 0) {
        why = "has a side that is not 1 to 16384 px";
    } else if ((white = header_number(file, 65535)) == 0) {
        why = "has a largest value that is not 1 to 65535";
    } else {
        size_t area = (size_t)width * (size_t)height, deep = white > 255 ? 2 : 1, wide = 3 * deep * (size_t)width;
        image->shape[0] = 1, image->shape[1] = 3, image->shape[2] = height, image->shape[3] = width;
        image->pixels = malloc(3 * area * sizeof(float));
        row = malloc(wide);
        if (image->pixels == NULL || row == NULL) why = "needs more memory than there is";
        for (size_t y = 0; why == NULL && y < (size_t)height; y++) {
            if (fread(row, 1, wide, file) != wide) why = "ends before its last pixel: fetch or save it again";
            for (size_t x = 0; why == NULL && x < (size_t)width; x++)
                for (size_t c = 0; c < 3; c++) {
                    size_t at = deep * (3 * x + c);
                    long value = deep == 2 ? row[at] << 8 | row[at + 1] : row[at];
                    if (value > white) why = "has a value above the largest that its header names";
                    image->pixels[c * area + y * (size_t)width + x] = (float)value / (float)white;
                }
        }
    }
    fclose(file);
    free(row);
    if (why == NULL) return 1;
    fail(path, why);
    free(image->pixels);
    image->pixels = NULL;
    return 0;
}

/* ---- graphs ------------------------------------------------------------------------------------------------------- */

static int open_graph(OrtEnv *env, OrtSessionOptions *options, OrtAllocator *allocator, const char *folder, const char *name,
                      Graph *graph) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
        fail(folder, "the name is too long");
        return 0;
    }
    if (!done(ort->CreateSession(env, path, options, &graph->session), path)) return 0;
    if (!done(ort->SessionGetInputCount(graph->session, &graph->inputs), path)) return 0;
    if (!done(ort->SessionGetOutputCount(graph->session, &graph->outputs), path)) return 0;
    if (graph->inputs > 2 * MAX_MAPS + 1 || graph->outputs > MAX_MAPS) {
        fail(path, "has more inputs or outputs than a graph of cpips");
        return 0;
    }
    for (size_t i = 0; i < graph->inputs; i++)
        if (!done(ort->SessionGetInputName(graph->session, i, allocator, &graph->input[i]), path)) return 0;
    for (size_t i = 0; i < graph->outputs; i++)
        if (!done(ort->SessionGetOutputName(graph->session, i, allocator, &graph->output[i]), path)) return 0;
    return 1;
}

static void close_graph(Graph *graph, OrtAllocator *allocator) {
    for (size_t i = 0; i < 2 * MAX_MAPS + 1; i++)
        if (graph->input[i] != NULL) done(ort->AllocatorFree(allocator, graph->input[i]), "AllocatorFree");
    for (size_t i = 0; i < MAX_MAPS; i++)
        if (graph->output[i] != NULL) done(ort->AllocatorFree(allocator, graph->output[i]), "AllocatorFree");
    if (graph->session != NULL) ort->ReleaseSession(graph->session);
}

static void release(OrtValue **values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (values[i] != NULL) ort->ReleaseValue(values[i]);
        values[i] = NULL;
    }
}

/* The features of an image, embed->outputs of them; they belong to the caller. */
static int encode(const Graph *embed, const OrtMemoryInfo *memory, const Image *image, OrtValue **features) {
    OrtValue *input = NULL;
    size_t bytes = 3 * (size_t)image->shape[2] * (size_t)image->shape[3] * sizeof(float);
    int good = done(ort->CreateTensorWithDataAsOrtValue(memory, image->pixels, bytes, image->shape, 4,
                                                        ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input), "image")
               && done(ort->Run(embed->session, NULL, (const char *const *)embed->input, (const OrtValue *const *)&input, 1,
                                (const char *const *)embed->output, embed->outputs, features), "embed.onnx");
    release(&input, 1);
    return good;
}

/* The distance of two images of height x width with these features. */
static int compare(const Graph *graph, const OrtMemoryInfo *memory, OrtValue **reference, OrtValue **image, size_t count,
                   const int64_t *shape, float *distance) {
    OrtValue *given[2 * MAX_MAPS + 1], *found = NULL, *size = NULL;
    int64_t height_width[2] = {shape[2], shape[3]}, two = 2;
    float *value;
    int good;
    memcpy(given, reference, count * sizeof *given);
    memcpy(given + count, image, count * sizeof *given);
    good = done(ort->CreateTensorWithDataAsOrtValue(memory, height_width, sizeof height_width, &two, 1,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &size), "size");
    given[2 * count] = size;
    good = good && done(ort->Run(graph->session, NULL, (const char *const *)graph->input, (const OrtValue *const *)given,
                                 2 * count + 1, (const char *const *)graph->output, 1, &found), "compare.onnx");
    if (good && (good = done(ort->GetTensorMutableData(found, (void **)&value), "distance"))) *distance = *value;
    release(&size, 1);
    release(&found, 1);
    return good;
}

static double milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

/* ---- the command -------------------------------------------------------------------------------------------------- */

/* How many of the images could not be compared; -1 if none could. */
static int compare_all(const Graph *embed, const Graph *measure, const OrtMemoryInfo *memory, char **paths, int count, long repeats) {
    OrtValue *reference[MAX_MAPS] = {NULL}, *other[MAX_MAPS] = {NULL};
    Image first, second;
    int failed = 0;
    if (!read_ppm(paths[0], &first)) return -1;
    if (!encode(embed, memory, &first, reference)) failed = -1;
    for (int i = 1; i < count && failed >= 0; i++) {
        float distance = 0;
        double least = 0;
        int good = read_ppm(paths[i], &second);
        if (good && (first.shape[2] != second.shape[2] || first.shape[3] != second.shape[3])) {
            char why[160];
            snprintf(why, sizeof why, "the images have different sizes, %dx%d and %dx%d px (width x height): crop or resize one of them",
                     (int)first.shape[3], (int)first.shape[2], (int)second.shape[3], (int)second.shape[2]);
            fail(paths[i], why);
            good = 0;
        }
        for (long n = 0; good && n < (repeats ? repeats : 1); n++) {
            double begun = milliseconds(), spent;
            if (repeats) { /* as if both images were new */
                release(reference, embed->outputs);
                good = encode(embed, memory, &first, reference);
            }
            good = good && encode(embed, memory, &second, other)
                   && compare(measure, memory, reference, other, embed->outputs, first.shape, &distance);
            release(other, embed->outputs);
            spent = milliseconds() - begun;
            if (n == 0 || spent < least) least = spent;
        }
        if (good && repeats) printf("%s\t%.9g\t%.3f\n", paths[i], distance, least);
        else if (good) printf("%s\t%.9g\n", paths[i], distance);
        failed += !good;
        free(second.pixels);
    }
    release(reference, embed->outputs);
    free(first.pixels);
    return failed == count - 1 ? -1 : failed;
}

static long positive(const char *text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    return errno == 0 && *text != '\0' && *end == '\0' && value >= 1 && value <= 1000000 ? value : 0;
}

int main(int argc, char **argv) {
    long threads = 0, repeats = 0;
    int at = 1, failed = -1;
    for (; at + 1 < argc && (strcmp(argv[at], "-t") == 0 || strcmp(argv[at], "-n") == 0); at += 2) {
        long value = positive(argv[at + 1]);
        if (value == 0) {
            fail(argv[at], "expected a number of 1 or more");
            return 2;
        }
        *(argv[at][1] == 't' ? &threads : &repeats) = value;
    }
    if (argc - at < 3 || argv[at][0] == '-') {
        fprintf(stderr, "usage: cpips_compare [-t THREADS] [-n REPEATS] GRAPHS REF.ppm IMG.ppm [IMG.ppm ...]\n");
        return 2;
    }
    if ((ort = OrtGetApiBase()->GetApi(ORT_API_VERSION)) == NULL) {
        fail("ONNX Runtime", "the library is older than the header that this program was built with");
        return 2;
    }
    static Graph embed, measure;
    OrtEnv *env = NULL;
    OrtSessionOptions *options = NULL;
    OrtMemoryInfo *memory = NULL;
    OrtAllocator *allocator = NULL;
    if (done(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "cpips", &env), "ONNX Runtime")
        && done(ort->CreateSessionOptions(&options), "ONNX Runtime")
        && done(ort->SetIntraOpNumThreads(options, (int)threads), "-t")
        && done(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "ONNX Runtime")
        && done(ort->GetAllocatorWithDefaultOptions(&allocator), "ONNX Runtime")
        && open_graph(env, options, allocator, argv[at], "embed.onnx", &embed)
        && open_graph(env, options, allocator, argv[at], "compare.onnx", &measure)) {
        if (embed.inputs != 1 || measure.inputs != 2 * embed.outputs + 1 || measure.outputs != 1)
            fail(argv[at], "embed.onnx and compare.onnx are not of one model: write them again with `cpips export`");
        else
            failed = compare_all(&embed, &measure, memory, argv + at + 1, argc - at - 1, repeats);
    }
    if (allocator != NULL) {
        close_graph(&embed, allocator);
        close_graph(&measure, allocator);
    }
    if (memory != NULL) ort->ReleaseMemoryInfo(memory);
    if (options != NULL) ort->ReleaseSessionOptions(options);
    if (env != NULL) ort->ReleaseEnv(env);
    return failed == 0 ? 0 : failed < 0 ? 2 : 1;
}
