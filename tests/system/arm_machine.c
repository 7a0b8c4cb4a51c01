/* Calls one entry point of a library on memory that a file holds: a machine of another kind, under an emulator.

   The file has the number of buffers, and for each its size and its bytes; they are written back. Arguments: the file,
   the name of the entry point. TVM's runtime is what stands here: threads take turns. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t type_index; uint32_t padding; union { int64_t number; void *pointer; } value; } Any;
typedef struct {
  void *data; int32_t device_type, device_id; int32_t ndim; uint8_t code, bits; uint16_t lanes;
  int64_t *shape, *strides; uint64_t byte_offset;
} Tensor;
typedef struct { void *sync; int32_t tasks; } Environment;
enum { TENSOR = 7, CPU = 1, ALIGNMENT = 64 };

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i] ? parts[i] : "", stderr);
}
static int launch(int (*task)(int, Environment *, void *), void *data, int tasks) {
  Environment environment = {0, tasks ? tasks : 2};
  for (int i = 0; i < environment.tasks; ++i) if (task(i, &environment, data)) return -1;
  return 0;
}
static void *allocate(int type, int id, uint64_t size, int code, int bits) { return aligned_alloc(ALIGNMENT, (size + ALIGNMENT) / ALIGNMENT * ALIGNMENT); }
static int release(int type, int id, void *memory) { free(memory); return 0; }
static void provide(void *library, const char *name, void *function) {
  void **place = dlsym(library, name);
  if (place) *place = function;
}

int main(int argc, char **argv) {
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) { fprintf(stderr, "%s\n", dlerror()); return 2; }
  provide(library, "__TVMBackendParallelLaunch", launch);
  provide(library, "__TVMBackendAllocWorkspace", allocate);
  provide(library, "__TVMBackendFreeWorkspace", release);
  int (*entry)(void *, const Any *, int32_t, Any *) = dlsym(library, argv[3]);
  FILE *file = fopen(argv[2], "r+b");
  int64_t count, *sizes, *addresses;
  fread(&count, 8, 1, file);
  sizes = malloc(8 * count);
  addresses = malloc(8 * count);
  for (int64_t i = 0; i < count; ++i) {
    fread(&sizes[i], 8, 1, file);
    addresses[i] = (int64_t)aligned_alloc(ALIGNMENT, (sizes[i] + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
    fread((void *)addresses[i], 1, sizes[i], file);
  }
  Tensor table = {addresses, CPU, 0, 1, 0, 64, 1, &count, 0, 0};
  Any argument = {TENSOR, 0, {.pointer = &table}}, result = {0};
  if (entry(0, &argument, 1, &result)) return 3;
  rewind(file);
  fwrite(&count, 8, 1, file);
  for (int64_t i = 0; i < count; ++i) {
    fwrite(&sizes[i], 8, 1, file);
    fwrite((void *)addresses[i], 1, sizes[i], file);
  }
  return fclose(file) ? 4 : 0;
}
