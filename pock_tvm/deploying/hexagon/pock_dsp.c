/* The DSP's side of pock_dsp.idl: what the skeleton that qaic makes of it calls. */
#ifdef POCK_WITHOUT_SDK
#include "without_sdk.h"
#else
#include "pock_dsp.h" /* by qaic */
#endif
#include "pock_shared.h"

enum { REFUSED = 0xE /* AEE_EBADPARM */ };

static pock_shared *shared_in(unsigned char *memory, int bytes) {
  int fits = bytes >= (int)sizeof(pock_shared) && (uintptr_t)memory % POCK_SHARED_ALIGNMENT == 0;
  return fits ? (pock_shared *)(void *)memory : NULL;
}

int pock_dsp_open(const char *uri, remote_handle64 *handle) {
  (void)uri;
  *handle = 1; /* the network lies in the shared memory: there is nothing to hold */
  return 0;
}

int pock_dsp_close(remote_handle64 handle) {
  (void)handle;
  return 0;
}

AEEResult pock_dsp_begin(remote_handle64 handle, unsigned char *memory, int bytes) {
  pock_shared *shared = shared_in(memory, bytes);
  (void)handle;
  return shared ? pock_shared_begin(shared) : REFUSED;
}

AEEResult pock_dsp_step(remote_handle64 handle, unsigned char *memory, int bytes) {
  pock_shared *shared = shared_in(memory, bytes);
  (void)handle;
  return shared ? pock_shared_step(shared) : REFUSED;
}

AEEResult pock_dsp_predict(remote_handle64 handle, unsigned char *memory, int bytes) {
  pock_shared *shared = shared_in(memory, bytes);
  (void)handle;
  return shared ? pock_shared_predict(shared) : REFUSED;
}

AEEResult pock_dsp_save(remote_handle64 handle, unsigned char *memory, int bytes, unsigned char *state, int state_bytes) {
  pock_shared *shared = shared_in(memory, bytes);
  (void)handle;
  return shared && state_bytes > 0 ? pock_shared_save(shared, state, (size_t)state_bytes) : REFUSED;
}

AEEResult pock_dsp_load(remote_handle64 handle, unsigned char *memory, int bytes, const unsigned char *state, int state_bytes) {
  pock_shared *shared = shared_in(memory, bytes);
  (void)handle;
  return shared && state_bytes > 0 ? pock_shared_load(shared, state, (size_t)state_bytes) : REFUSED;
}
