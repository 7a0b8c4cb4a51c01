/* The state as a file: safetensors, with a CRC-32 of the header and of each tensor. */
#include "pock_state.h"

#include <string.h>

#include "pock_runtime.h"

#define LENGTH_BYTES 8 /* of the header's length, in front of it */
#define DIGITS 20      /* of a count in the template */
#define SUM_DIGITS 8

static void write_sum(unsigned char *to, uint32_t sum) {
  for (int i = 0; i < SUM_DIGITS; i++) to[i] = (unsigned char)"0123456789abcdef"[sum >> (28 - 4 * i) & 15];
}

/* Move on by a run of a tensor: items that lie side by side in memory as in the file. Returns the place of the next. */
static size_t next_run(const pock_tensor *tensor, uint32_t *index, size_t place) {
  const uint32_t *strides = tensor->shape + tensor->rank;
  for (uint32_t axis = tensor->rank; axis--;) {
    place += strides[axis] * tensor->item_bytes;
    if (++index[axis] < tensor->shape[axis]) break;
    place -= (size_t)strides[axis] * tensor->shape[axis] * tensor->item_bytes;
    index[axis] = 0;
  }
  return place;
}

/* What is written: summed up, and handed on in pieces unless `write` is NULL. */
typedef struct {
  int (*write)(void *to, const void *data, size_t bytes);
  void *to;
  unsigned char *piece;
  size_t used; /* bytes of the piece */
  uint32_t sum;
  int failed;
} output;

static void flush(output *out) {
  if (out->used && !out->failed) out->failed = out->write(out->to, out->piece, out->used);
  out->used = 0;
}

static void put(output *out, const unsigned char *data, size_t bytes) {
  out->sum = pock_crc32(out->sum, data, bytes);
  while (out->write && bytes) {
    size_t count = POCK_PIECE_BYTES - out->used < bytes ? POCK_PIECE_BYTES - out->used : bytes;
    memcpy(out->piece + out->used, data, count);
    out->used += count;
    data += count;
    bytes -= count;
    if (out->used == POCK_PIECE_BYTES) flush(out);
  }
}

static void put_tensor(output *out, const pock_tensor *tensor, const unsigned char *memory) {
  uint32_t index[POCK_MOST_AXES] = {0};
  size_t bytes = tensor->run * tensor->item_bytes, place = tensor->place;
  for (size_t i = 0; i < tensor->items; i += tensor->run, place = next_run(tensor, index, place))
    put(out, memory + place, bytes);
}

/* Write the header from a place up to a checksum, and that. Returns the place behind it. */
static size_t put_sum(output *out, const pock_state *form, size_t at, size_t place, uint32_t sum) {
  unsigned char digits[SUM_DIGITS];
  put(out, form->header + at, place - at);
  write_sum(digits, sum);
  put(out, digits, SUM_DIGITS);
  return place + SUM_DIGITS;
}

/* Write the header from its template, in whose order the counts and checksums are. `sum`: its own. */
static void put_header(
    output *out, const pock_state *form, const unsigned char *memory, const uint64_t *counts, uint32_t sum) {
  unsigned char digits[DIGITS];
  size_t at = 0;
  for (size_t i = 0; i < form->count_count; i++) {
    uint64_t rest = counts[i];
    put(out, form->header + at, form->counts[i] - at);
    for (int digit = DIGITS; digit--; rest /= 10) digits[digit] = (unsigned char)('0' + rest % 10);
    put(out, digits, DIGITS);
    at = form->counts[i] + DIGITS;
  }
  at = put_sum(out, form, at, form->sum, sum);
  for (size_t i = 0; i < form->tensor_count; i++) {
    output summed = {0};
    put_tensor(&summed, form->tensors + i, memory);
    at = put_sum(out, form, at, form->tensors[i].sum, summed.sum);
  }
  put(out, form->header + at, form->header_bytes - at);
}

int pock_put_state(
    const pock_state *form, const unsigned char *memory, const uint64_t *counts,
    int (*write)(void *to, const void *data, size_t bytes), void *to) {
  unsigned char piece[POCK_PIECE_BYTES];
  output summed = {0}, out = {.write = write, .to = to, .piece = piece};
  put_header(&summed, form, memory, counts, 0);
  put_header(&out, form, memory, counts, summed.sum);
  for (size_t i = 0; i < form->tensor_count; i++) put_tensor(&out, form->tensors + i, memory);
  flush(&out);
  return out.failed;
}

/* A file that is read, of which one piece is here. */
typedef struct {
  int (*read)(void *from, size_t offset, void *data, size_t bytes);
  void *from;
  size_t bytes, begin, end; /* of all; from where to where the piece goes */
  unsigned char *piece;
  int failed;
} input;

typedef struct {
  size_t at, end;
} span;

typedef struct {
  span key, value; /* a string without its quotes, and anything */
} member;

typedef struct {
  span all, rest; /* an object, and what of it comes behind the last member that was found */
} object;

/* Have the piece with a byte here. Returns how many bytes there are from this one on, 0 on failure. */
static size_t fetch(input *in, size_t at) {
  if (at < in->begin || at >= in->end) {
    in->begin = at - at % POCK_PIECE_BYTES;
    in->end = in->bytes - in->begin < POCK_PIECE_BYTES ? in->bytes : in->begin + POCK_PIECE_BYTES;
    in->failed = in->failed || in->read(in->from, in->begin, in->piece, in->end - in->begin);
    if (in->failed) return in->end = 0;
  }
  return in->end - at;
}

/* Read bytes: copy them unless `to` is NULL, and sum them up on top of `sum`. */
static uint32_t take(input *in, size_t at, size_t bytes, unsigned char *to, uint32_t sum) {
  for (size_t count; bytes && (count = fetch(in, at)); at += count, bytes -= count) {
    const unsigned char *from = in->piece + (at - in->begin);
    if (count > bytes) count = bytes;
    sum = pock_crc32(sum, from, count);
    if (to) memcpy(to, from, count), to += count;
  }
  return sum;
}

/* A byte of a text; -1 behind its end. */
static int byte_at(input *in, size_t at, size_t end) {
  return at < end && fetch(in, at) ? in->piece[at - in->begin] : -1;
}

static int same(input *in, span found, const void *text, size_t bytes) {
  const unsigned char *wanted = text;
  if (found.end - found.at != bytes) return 0;
  while (found.at < found.end && byte_at(in, found.at, found.end) == *wanted) found.at++, wanted++;
  return found.at == found.end;
}

/* Return the place behind a string that begins at a place; 0 if it does not end. */
static size_t skip_string(input *in, size_t at, size_t end) {
  int byte;
  while ((byte = byte_at(in, ++at, end)) != '"') {
    if (byte < 0) return 0;
    if (byte == '\\') at++;
  }
  return at + 1;
}

/* Return the place behind a string, or behind an object or array with all within it; 0 if it does not end. */
static size_t skip_value(input *in, size_t at, size_t end) {
  size_t depth = 0;
  do {
    int byte = byte_at(in, at, end);
    if (byte < 0) return 0;
    if (byte == '"') {
      at = skip_string(in, at, end);
      if (!at) return 0;
    } else {
      depth += byte == '{' || byte == '[';
      if ((byte == '}' || byte == ']') && !depth--) return 0;
      at++;
    }
  } while (depth);
  return at;
}

/* Read the next member of an object; `rest` begins at the brace or comma before it. Returns whether there is one. */
static int next_member(input *in, span *rest, member *found) {
  int before = byte_at(in, rest->at, rest->end);
  size_t at = rest->at + 1;
  if ((before != '{' && before != ',') || byte_at(in, at, rest->end) != '"') return 0;
  found->key.at = at + 1;
  at = skip_string(in, at, rest->end);
  if (!at || byte_at(in, at, rest->end) != ':') return 0;
  found->key.end = at - 1;
  found->value.at = at + 1;
  at = skip_value(in, at + 1, rest->end);
  if (!at || at >= rest->end) return 0;
  found->value.end = rest->at = at;
  return 1;
}

/* Count the members of an object; 0 if it has another form. Spaces pad a header. */
static size_t members_of(input *in, span text) {
  member each;
  size_t count = 0;
  while (byte_at(in, text.at, text.end) == (count ? ',' : '{') && next_member(in, &text, &each)) count++;
  if (byte_at(in, text.at++, text.end) != '}') return 0;
  while (byte_at(in, text.at, text.end) == ' ') text.at++;
  return text.at == text.end ? count : 0;
}

/* Look up a member by its key: behind the last one first, since files are mostly in the template's order. */
static int find(input *in, object *within, const void *key, size_t bytes, span *value) {
  member found;
  for (int round = 0; round < 2; round++, within->rest = within->all)
    while (next_member(in, &within->rest, &found))
      if (same(in, found.key, key, bytes)) return *value = found.value, 1;
  return 0;
}

/* Read a decimal number, and move behind it and the character that follows. Returns that, or -2 if there is no number
   of at most 64 bits. */
static int read_number(input *in, span *text, uint64_t *number) {
  size_t begin = text->at;
  for (*number = 0;; text->at++) {
    int byte = byte_at(in, text->at, text->end);
    unsigned digit = (unsigned)byte - '0';
    if (digit > 9) return text->at++ > begin ? byte : -2;
    if (*number > (UINT64_MAX - digit) / 10) return -2;
    *number = *number * 10 + digit;
  }
}

static int has_sum(input *in, span value, uint32_t sum) {
  unsigned char text[SUM_DIGITS + 2] = "\"\"";
  write_sum(text + 1, sum);
  text[SUM_DIGITS + 1] = '"';
  return same(in, value, text, sizeof text);
}

/* A state's file. */
typedef struct {
  input in;
  object header, metadata;
} state_file;

/* Find a tensor's values, and their checksum. Its record has the form's type and shape, then its offsets. */
static int locate(state_file *file, const pock_state *form, const pock_tensor *tensor, size_t *values, span *sum) {
  const unsigned char *name = form->header + tensor->name, *record = name + tensor->name_bytes + 2; /* behind ": */
  const unsigned char *key = form->header + tensor->sum - 3 - (6 + tensor->name_bytes); /* crc32.<name>":" */
  size_t data = file->header.all.end;
  uint64_t begin, end;
  span found, start;
  if (!find(&file->in, &file->header, name, tensor->name_bytes, &found) ||
      !find(&file->in, &file->metadata, key, 6 + tensor->name_bytes, sum) ||
      found.end - found.at < tensor->form_bytes)
    return POCK_STATE_OTHER;
  start = found;
  found.at = start.end = start.at + tensor->form_bytes;
  if (!same(&file->in, start, record, tensor->form_bytes)) return POCK_STATE_OTHER;
  if (read_number(&file->in, &found, &begin) != ',' || read_number(&file->in, &found, &end) != ']' ||
      found.end - found.at != 1 || begin > end || end > file->in.bytes - data ||
      end - begin != tensor->items * tensor->item_bytes)
    return POCK_STATE_DAMAGED;
  *values = data + (size_t)begin;
  return POCK_STATE_OK;
}

/* Compare metadata with the form's: all that belongs to the network, not to one state of it. Read the counts. */
static int check_metadata(state_file *file, const pock_state *form, uint64_t *counts) {
  span found;
  for (size_t i = 0; i < form->field_count; i++) {
    const pock_field *field = form->fields + i;
    const unsigned char *key = form->header + field->key, *value = key + field->key_bytes + 2; /* behind ": */
    if (!find(&file->in, &file->metadata, key, field->key_bytes, &found) ||
        (field->value_bytes && !same(&file->in, found, value, field->value_bytes)))
      return POCK_STATE_OTHER;
    if (i + form->count_count >= form->field_count) {
      found.at++; /* the quote */
      if (read_number(&file->in, &found, &counts[i + form->count_count - form->field_count]) != '"') return POCK_STATE_DAMAGED;
    }
  }
  if (members_of(&file->in, file->metadata.all) != form->field_count + form->tensor_count + 1) return POCK_STATE_OTHER;
  return counts[POCK_PENDING] < form->accumulate ? POCK_STATE_OK : POCK_STATE_DAMAGED;
}

/* Check a whole state against its form, and read the counts. */
static int check_file(state_file *file, const pock_state *form, uint64_t *counts) {
  static const unsigned char no_sum[SUM_DIGITS + 1] = "00000000";
  input *in = &file->in;
  span header = file->header.all, found;
  size_t members = members_of(in, header), total = 0, values;
  uint32_t crc;
  int code;
  if (!members || !find(in, &file->header, "__metadata__", 12, &found)) return POCK_STATE_DAMAGED;
  file->metadata.all = file->metadata.rest = found;
  if (!find(in, &file->metadata, "header_crc32", 12, &found) || found.end - found.at != SUM_DIGITS + 2)
    return POCK_STATE_DAMAGED;
  crc = take(in, 0, found.at + 1, NULL, 0);
  crc = pock_crc32(crc, no_sum, SUM_DIGITS);
  crc = take(in, found.end - 1, header.end - found.end + 1, NULL, crc);
  if (!has_sum(in, found, crc)) return POCK_STATE_DAMAGED;
  code = check_metadata(file, form, counts);
  for (size_t i = 0; i < form->tensor_count && !code; i++) {
    size_t bytes = form->tensors[i].items * form->tensors[i].item_bytes;
    code = locate(file, form, form->tensors + i, &values, &found);
    if (!code && !has_sum(in, found, take(in, values, bytes, NULL, 0))) code = POCK_STATE_DAMAGED;
    total += bytes;
  }
  if (code) return code;
  if (members != form->tensor_count + 1) return POCK_STATE_OTHER;
  return total == in->bytes - header.end ? POCK_STATE_OK : POCK_STATE_DAMAGED;
}

/* Fill a tensor in memory. Returns the checksum of what was read. */
static uint32_t take_tensor(input *in, size_t values, const pock_tensor *tensor, unsigned char *memory) {
  uint32_t index[POCK_MOST_AXES] = {0}, sum = 0;
  size_t bytes = tensor->run * tensor->item_bytes, place = tensor->place;
  for (size_t i = 0; i < tensor->items; i += tensor->run, place = next_run(tensor, index, place), values += bytes)
    sum = take(in, values, bytes, memory + place, sum);
  return sum;
}

int pock_take_state(
    const pock_state *form, unsigned char *memory, uint64_t *counts,
    int (*read)(void *from, size_t offset, void *data, size_t bytes), void *from, size_t bytes) {
  unsigned char piece[POCK_PIECE_BYTES], start[LENGTH_BYTES] = {0};
  state_file file = {.in = {.read = read, .from = from, .bytes = bytes, .piece = piece}};
  uint64_t length = 0, found_counts[POCK_COUNTS];
  size_t values;
  span sum;
  int code;
  if (bytes < LENGTH_BYTES) return POCK_STATE_DAMAGED;
  take(&file.in, 0, LENGTH_BYTES, start, 0);
  for (int i = LENGTH_BYTES; i--;) length = length << 8 | start[i];
  if (length > bytes - LENGTH_BYTES) return POCK_STATE_DAMAGED;
  file.header.all = file.header.rest = (span){LENGTH_BYTES, LENGTH_BYTES + (size_t)length};
  code = check_file(&file, form, found_counts);
  if (file.in.failed) return POCK_STATE_UNREAD;
  if (code) return code;

  memcpy(counts, found_counts, form->count_count * sizeof *counts);
  for (size_t i = 0; i < form->tensor_count; i++)
    if (locate(&file, form, form->tensors + i, &values, &sum) ||
        !has_sum(&file.in, sum, take_tensor(&file.in, values, form->tensors + i, memory)))
      return POCK_STATE_LOST;
  return POCK_STATE_OK;
}
