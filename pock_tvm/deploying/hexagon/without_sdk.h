/* Stands in for what the Hexagon SDK and qaic declare, as far as pock_dsp.c and host.c need it: for compiling without
   the SDK (-DPOCK_WITHOUT_SDK). Nothing here runs. */
#ifndef WITHOUT_SDK_H
#define WITHOUT_SDK_H

#include <stdint.h>

typedef int AEEResult;
typedef uint64_t remote_handle64;

#define pock_dsp_URI "file:///libpock_dsp_skel.so?pock_dsp_skel_handle_invoke&_modver=1.0"
#define CDSP_DOMAIN "&_dom=cdsp"
#define RPCMEM_HEAP_ID_SYSTEM 25
#define RPCMEM_DEFAULT_FLAGS 1

void *rpcmem_alloc(int heap, uint32_t flags, int bytes);
void rpcmem_free(void *memory);

int pock_dsp_open(const char *uri, remote_handle64 *handle);
int pock_dsp_close(remote_handle64 handle);
AEEResult pock_dsp_begin(remote_handle64 handle, unsigned char *shared, int bytes);
AEEResult pock_dsp_step(remote_handle64 handle, unsigned char *shared, int bytes);
AEEResult pock_dsp_predict(remote_handle64 handle, unsigned char *shared, int bytes);
AEEResult pock_dsp_save(remote_handle64 handle, unsigned char *shared, int bytes, unsigned char *state, int state_bytes);
AEEResult pock_dsp_load(remote_handle64 handle, unsigned char *shared, int bytes, const unsigned char *state, int state_bytes);

#endif
