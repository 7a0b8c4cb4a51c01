#include "pock_runtime.h"

#include <string.h>

#include "pock_kernels.h"

/* A number is finite if its exponent is below the largest. Integers are compared: compilers fold x == x. */
#define ALL_FINITE(name, type, magnitude, infinity)                  \
  int pock_all_finite_##name(const void *numbers, size_t count) {    \
    const type *bits = numbers;                                      \
    type largest = 0;                                                \
    for (size_t i = 0; i < count; i++) {                             \
      type found = bits[i] & (type)(magnitude);                      \
      largest = found > largest ? found : largest;                   \
    }                                                                \
    return largest < (type)(infinity);                               \
  }
ALL_FINITE(float16, uint16_t, 0x7fff, 0x7c00)
ALL_FINITE(bfloat16, uint16_t, 0x7fff, 0x7f80)
ALL_FINITE(float32, uint32_t, 0x7fffffff, 0x7f800000)
ALL_FINITE(float64, uint64_t, 0x7fffffffffffffff, 0x7ff0000000000000)

uint32_t pock_crc32(uint32_t before, const void *data, size_t bytes) {
  static const uint32_t table[16] = {
      0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
      0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
  const unsigned char *at = data;
  uint32_t crc = ~before;
  for (size_t i = 0; i < bytes; i++) {
    crc ^= at[i];
    crc = (crc >> 4) ^ table[crc & 15];
    crc = (crc >> 4) ^ table[crc & 15];
  }
  return ~crc;
}

double pock_power(double base, uint64_t exponent) {
  double result = 1;
  for (; exponent; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

double pock_square_root(double number) {
  uint64_t bits;
  double root;
  memcpy(&bits, &number, sizeof bits);
  bits = (bits >> 1) + ((uint64_t)0x1ff8 << 48); /* halves the exponent: within 7 % */
  memcpy(&root, &bits, sizeof root);
  for (int i = 0; i < 5; i++) root = 0.5 * (root + number / root); /* Newton: each doubles the digits */
  return root;
}

void pock_append(char *buffer, size_t bytes, const char *text) {
  size_t at = strlen(buffer);
  while (*text && at + 1 < bytes) buffer[at++] = *text++;
  buffer[at] = 0;
}

void pock_append_number(char *buffer, size_t bytes, int64_t number) {
  char digits[24], *at = digits + sizeof digits;
  uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
  *--at = 0;
  do *--at = (char)('0' + rest % 10);
  while (rest /= 10);
  if (number < 0) *--at = '-';
  pock_append(buffer, bytes, at);
}

/* ---- the state as a file: safetensors, with a CRC-32 of the header and of each tensor ---------------------------- */

#define LENGTH_BYTES 8 /* of the header's length, in front of it */
#define DIGITS 20      /* of a count in the template */
#define SUM_DIGITS 8

typedef struct {
  const unsigned char *at, *end;
} span;

typedef struct {
  span key, value; /* a string without its quotes, and anything */
} member;

static int same(span a, const void *text, size_t bytes) {
  return (size_t)(a.end - a.at) == bytes && !memcmp(a.at, text, bytes);
}

/* Skip a string from its first quote on; NULL if it does not end. */
static const unsigned char *skip_string(const unsigned char *at, const unsigned char *end) {
  while (++at < end && *at != '"')
    if (*at == '\\') at++;
  return at < end ? at + 1 : NULL;
}

/* Skip a string, or an object or array with all within it; NULL if it does not end. */
static const unsigned char *skip_value(const unsigned char *at, const unsigned char *end) {
  size_t depth = 0;
  while (at < end) {
    if (*at == '"') {
      at = skip_string(at, end);
      if (!at) return NULL;
    } else {
      depth += *at == '{' || *at == '[';
      if ((*at == '}' || *at == ']') && !depth--) return NULL;
      at++;
    }
    if (!depth) return at;
  }
  return NULL;
}

/* Read the next member of an object; `rest` begins at the brace or comma before it. Returns whether there is one. */
static int next_member(span *rest, member *found) {
  const unsigned char *at = rest->at + 1, *end = rest->end;
  if (at >= end || (at[-1] != '{' && at[-1] != ',') || *at != '"') return 0;
  found->key.at = at + 1;
  at = skip_string(at, end);
  if (!at || at >= end || *at != ':') return 0;
  found->key.end = at - 1;
  found->value.at = at + 1;
  at = skip_value(at + 1, end);
  if (!at || at >= end) return 0;
  found->value.end = at;
  rest->at = at;
  return 1;
}

/* Look up a member by its key, and return how many members the object has before its closing brace; 0 if the key is
   not there, or if it is no object of this form. */
static size_t find(span object, span key, member *found) {
  member each;
  size_t count = 0;
  int seen = 0;
  if (object.at >= object.end || *object.at != '{') return 0;
  for (; next_member(&object, &each); count++)
    if (same(each.key, key.at, (size_t)(key.end - key.at))) {
      *found = each;
      seen = 1;
    }
  if (!seen || object.at >= object.end || *object.at++ != '}') return 0;
  while (object.at < object.end && *object.at == ' ') object.at++; /* which pad a header */
  return object.at == object.end ? count : 0;
}

/* Read a decimal number, and move behind it. Returns whether there is one of at most 64 bits. */
static int read_number(span *text, uint64_t *number) {
  const unsigned char *begin = text->at;
  for (*number = 0; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
    unsigned digit = *text->at - '0';
    if (*number > (UINT64_MAX - digit) / 10) return 0;
    *number = *number * 10 + digit;
  }
  return text->at > begin;
}

static void write_sum(unsigned char *to, uint32_t sum) {
  for (int i = 0; i < SUM_DIGITS; i++) to[i] = (unsigned char)"0123456789abcdef"[sum >> (28 - 4 * i) & 15];
}

static int has_sum(span value, uint32_t sum) {
  unsigned char text[SUM_DIGITS + 2] = "\"\"";
  write_sum(text + 1, sum);
  text[SUM_DIGITS + 1] = '"';
  return same(value, text, sizeof text);
}

/* Copy a tensor between memory and file, whose axes are in another order. */
static void copy_tensor(const pock_tensor *tensor, unsigned char *memory, unsigned char *file, int is_reading) {
  uint32_t index[16] = {0};
  const uint32_t *strides = tensor->shape + tensor->rank;
  size_t item = tensor->item_bytes, at = 0;
  for (size_t i = 0; i < tensor->items; i++, memory += item) {
    if (is_reading)
      memcpy(memory, file + at * item, item);
    else
      memcpy(file + at * item, memory, item);
    for (uint32_t axis = tensor->rank; axis--;) {
      at += strides[axis];
      if (++index[axis] < tensor->shape[axis]) break;
      at -= (size_t)strides[axis] * tensor->shape[axis];
      index[axis] = 0;
    }
  }
}

void pock_write_state(const pock_state *form, const unsigned char *memory, const uint64_t *counts, unsigned char *to) {
  unsigned char *data = to + form->header_bytes;
  memcpy(to, form->header, form->header_bytes);
  for (int i = 0; i < POCK_COUNTS; i++) {
    uint64_t rest = counts[i];
    for (unsigned char *at = to + form->counts[i] + DIGITS; rest; rest /= 10) *--at = (unsigned char)('0' + rest % 10);
  }
  for (size_t i = 0; i < form->tensor_count; i++) {
    const pock_tensor *tensor = form->tensors + i;
    size_t bytes = tensor->items * tensor->item_bytes;
    copy_tensor(tensor, (unsigned char *)memory + tensor->place, data, 0);
    write_sum(to + tensor->sum, pock_crc32(0, data, bytes));
    data += bytes;
  }
  write_sum(to + form->sum, pock_crc32(0, to, form->header_bytes));
}

/* Find a tensor's values in a file: its record has the form's type and shape, then its offsets. */
static int locate(const pock_state *form, const pock_tensor *tensor, span header, span data, span *values) {
  span name = {form->header + tensor->name, form->header + tensor->name + tensor->name_bytes};
  const unsigned char *record = name.end + 2; /* behind the quote and the colon */
  uint64_t begin, end;
  member found;
  if (!find(header, name, &found)) return POCK_STATE_OTHER;
  span rest = found.value;
  if ((size_t)(rest.end - rest.at) < tensor->form_bytes || memcmp(rest.at, record, tensor->form_bytes))
    return POCK_STATE_OTHER;
  rest.at += tensor->form_bytes;
  if (!read_number(&rest, &begin) || rest.at == rest.end || *rest.at++ != ',' || !read_number(&rest, &end) ||
      !same(rest, "]}", 2) || begin > end || end > (size_t)(data.end - data.at) ||
      end - begin != tensor->items * tensor->item_bytes)
    return POCK_STATE_DAMAGED;
  values->at = data.at + begin;
  values->end = data.at + end;
  return POCK_STATE_OK;
}

static int starts_with(span key, const char *text) {
  size_t bytes = strlen(text);
  return (size_t)(key.end - key.at) >= bytes && !memcmp(key.at, text, bytes);
}

/* Compare metadata with the form's: all that belongs to the network, not to one state of it. */
static int check_metadata(span wanted, span metadata) {
  member each, found;
  size_t count = 0, members = 0;
  for (; next_member(&wanted, &each); count++) {
    members = find(metadata, each.key, &found);
    if (!members) return POCK_STATE_OTHER;
    if (starts_with(each.key, "crc32.") || same(each.key, "header_crc32", 12) || same(each.key, "notes", 5) ||
        same(each.key, "steps", 5) || same(each.key, "updates", 7) || same(each.key, "pending", 7))
      continue;
    if (!same(found.value, each.value.at, (size_t)(each.value.end - each.value.at))) return POCK_STATE_OTHER;
  }
  return count == members ? POCK_STATE_OK : POCK_STATE_OTHER;
}

int pock_read_state(
    const pock_state *form, unsigned char *memory, uint64_t *counts, const unsigned char *from, size_t bytes) {
  static const char *const names[POCK_COUNTS] = {"steps", "updates", "pending"};
  static const unsigned char no_sum[SUM_DIGITS + 1] = "00000000";
  span header = {from + LENGTH_BYTES, NULL}, data = {NULL, from + bytes}, key, values;
  uint64_t length = 0, found_counts[POCK_COUNTS], total = 0;
  member found, sum;
  uint32_t crc;
  int code;
  if (bytes < LENGTH_BYTES) return POCK_STATE_DAMAGED;
  for (int i = LENGTH_BYTES; i--;) length = length << 8 | from[i];
  if (length > bytes - LENGTH_BYTES) return POCK_STATE_DAMAGED;
  data.at = header.end = header.at + length;
  key.at = (const unsigned char *)"__metadata__";
  key.end = key.at + 12;
  size_t members = find(header, key, &found);
  if (!members) return POCK_STATE_DAMAGED;
  span metadata = found.value;
  key.at = (const unsigned char *)"header_crc32";
  key.end = key.at + 12;
  if (!find(metadata, key, &sum) || sum.value.end - sum.value.at != SUM_DIGITS + 2) return POCK_STATE_DAMAGED;
  crc = pock_crc32(0, from, (size_t)(sum.value.at + 1 - from));
  crc = pock_crc32(crc, no_sum, SUM_DIGITS);
  crc = pock_crc32(crc, sum.value.end - 1, (size_t)(header.end - sum.value.end + 1));
  if (!has_sum(sum.value, crc)) return POCK_STATE_DAMAGED;

  span wanted = {form->header + form->metadata, form->header + form->header_bytes};
  code = check_metadata(wanted, metadata);
  if (code) return code;
  for (int i = 0; i < POCK_COUNTS; i++) {
    key.at = (const unsigned char *)names[i];
    key.end = key.at + strlen(names[i]);
    find(metadata, key, &found);
    span digits = {found.value.at + 1, found.value.end - 1};
    if (!read_number(&digits, &found_counts[i]) || digits.at != digits.end) return POCK_STATE_DAMAGED;
  }
  if (found_counts[POCK_PENDING] >= form->accumulate) return POCK_STATE_DAMAGED;
  for (size_t i = 0; i < form->tensor_count; i++) {
    const pock_tensor *tensor = form->tensors + i;
    code = locate(form, tensor, header, data, &values);
    if (code) return code;
    key.at = form->header + tensor->sum - 3 - (6 + tensor->name_bytes); /* crc32.<name>":"<sum> */
    key.end = form->header + tensor->sum - 3;
    find(metadata, key, &found);
    if (!has_sum(found.value, pock_crc32(0, values.at, (size_t)(values.end - values.at)))) return POCK_STATE_DAMAGED;
    total += (size_t)(values.end - values.at);
  }
  if (members != form->tensor_count + 1) return POCK_STATE_OTHER;
  if (total != (size_t)(data.end - data.at)) return POCK_STATE_DAMAGED;

  memcpy(counts, found_counts, sizeof found_counts);
  for (size_t i = 0; i < form->tensor_count; i++) {
    locate(form, form->tensors + i, header, data, &values);
    copy_tensor(form->tensors + i, memory + form->tensors[i].place, (unsigned char *)values.at, 1);
  }
  return POCK_STATE_OK;
}

/* ---- kernels that run on several threads ------------------------------------------------------------------------ */

#if POCK_THREADS == 1
int pock_launch(pock_task *task, void *data, int tasks) {
  pock_group one = {NULL, 1};
  (void)tasks; /* kernels share their work among as many as they are told */
  return task(0, &one, data);
}
#endif

/* The pointer through which kernels that are objects launch their parallel loops. They define it, too, weakly. Windows
   keeps any one of the definitions: there it is set at run time, always to the same. */
typedef int pock_launcher(pock_task *task, void *data, int tasks);
#ifdef _WIN32
__declspec(selectany) pock_launcher *__TVMBackendParallelLaunch = pock_launch;
void pock_connect_kernels(void) { __TVMBackendParallelLaunch = pock_launch; }
#else
extern pock_launcher *const __TVMBackendParallelLaunch;
pock_launcher *const __TVMBackendParallelLaunch = pock_launch;
void pock_connect_kernels(void) {}
#endif
