// Runs kernels for CUDA on the host.
//
// The threads of a block are fibers that take turns at barriers. Asynchronous copies happen as late as they may, and
// instructions of a warp when its last thread arrives. Fragments are those of the PTX ISA, section "Warp-level matrix
// instructions": https://docs.nvidia.com/cuda/parallel-thread-execution/.

#include "cuda_on_host.hpp"

#include <ucontext.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <vector>

Place blockIdx, threadIdx;

namespace {

constexpr int WARP = 32;
constexpr size_t STACK = 1 << 16;

struct Barrier {
  int size = 0, arrived = 0, round = 0;
};
struct Copy {
  char* to;
  const char* from;
  unsigned bytes;
};
struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool is_done = false;
  std::deque<std::vector<Copy>> copies{1};  // groups, the last of which is open
};

std::vector<Thread> threads;
std::vector<Barrier> warps;
Barrier block;
ucontext_t scheduler;
int current, block_number;
void (*kernel)();
char origin[16];  // addresses of shared memory are distances from it

void wait_at(Barrier& barrier, const std::function<void()>& work = {}) {
  int round = barrier.round;
  if (++barrier.arrived == barrier.size) {
    if (work) work();
    barrier.arrived = 0;
    ++barrier.round;
  }
  while (barrier.round == round) swapcontext(&threads[current].context, &scheduler);
}

void run_thread() {
  kernel();
  for (const auto& group : threads[current].copies)
    if (!group.empty()) fail("a thread ends before its copies");
  threads[current].is_done = true;
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

void __syncthreads() { wait_at(block); }

void launch(Place grid, Place size, bool descending, void (*body)()) {
  int count = size.x * size.y * size.z;
  kernel = body;
  threads.resize(count);
  for (auto& thread : threads) thread.stack.resize(STACK);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x, ++block_number) {
        block = {count};
        warps.assign((count + WARP - 1) / WARP, {WARP});
        for (auto& thread : threads) {
          thread.is_done = false;
          thread.copies.assign(1, {});
          getcontext(&thread.context);
          thread.context.uc_stack.ss_sp = thread.stack.data();
          thread.context.uc_stack.ss_size = STACK;
          thread.context.uc_link = &scheduler;
          makecontext(&thread.context, run_thread, 0);
        }
        for (int left = count, turns = 0; left > 0; ++turns) {
          if (turns > 1 << 20) fail("threads wait for each other");
          for (int number = 0; number < count; ++number) {
            current = descending ? count - 1 - number : number;
            if (threads[current].is_done) continue;
            threadIdx = {current % size.x, current / size.x % size.y, current / size.x / size.y};
            swapcontext(&scheduler, &threads[current].context);
            left -= threads[current].is_done;
          }
        }
      }
}

void begin_shared(int& last_block, void* memory, size_t bytes) {
  if (last_block == block_number) return;
  last_block = block_number;
  std::memset(memory, 0xff, bytes);
}

// ---- instructions --------------------------------------------------------------------------------------------------

unsigned __cvta_generic_to_shared(const void* pointer) { return static_cast<const char*>(pointer) - origin; }

namespace {

template <class T>
T* shared_at(unsigned address) {
  char* pointer = origin + static_cast<int>(address);
  if (reinterpret_cast<uintptr_t>(pointer) % 16) fail("an address of shared memory is no multiple of 16");
  return reinterpret_cast<T*>(pointer);
}

}  // namespace

void cp_async_cg_shared_global(unsigned to, const void* from, int size, int bytes) {
  if (size != 16 || bytes < 0 || bytes > size) fail("a copy that is not of 16 bytes");
  if (bytes && reinterpret_cast<uintptr_t>(from) % 16) fail("a copy from an address that is no multiple of 16");
  threads[current].copies.back().push_back({shared_at<char>(to), static_cast<const char*>(from), unsigned(bytes)});
}

void cp_async_commit_group() { threads[current].copies.emplace_back(); }

void cp_async_wait_group(int running) {
  auto& copies = threads[current].copies;
  for (; int(copies.size()) > running + 1; copies.pop_front())
    for (const Copy& copy : copies.front()) {
      std::memset(copy.to, 0, 16);
      if (copy.bytes) std::memcpy(copy.to, copy.from, copy.bytes);
    }
}

namespace {

// What each thread of a warp gives to an instruction.
struct Given {
  const char* name;
  std::array<unsigned, 6> words;
  unsigned address;
  std::array<unsigned*, 4> registers;
  std::array<float*, 4> sums;
};
std::array<Given, WARP> given[WARP];

void together(const Given& mine, const std::function<void(const std::array<Given, WARP>&)>& work) {
  int warp = current / WARP;
  auto& all = given[warp];
  all[current % WARP] = mine;
  wait_at(warps[warp], [&] {
    for (const Given& each : all)
      if (std::strcmp(each.name, mine.name)) fail("threads of a warp are at different instructions");
    work(all);
  });
}

void load_matrices(bool transposed, std::array<unsigned*, 4> registers, unsigned address) {
  together({transposed ? "ldmatrix.trans" : "ldmatrix", {}, address, registers, {}}, [=](const auto& all) {
    for (int lane = 0; lane < WARP; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned pair = 0;
        for (int part = 0; part < 2; ++part) {
          int row = lane / 4, column = lane % 4 * 2 + part;
          if (transposed) std::swap(row, column);
          pair |= unsigned(shared_at<uint16_t>(all[8 * matrix + row].address)[column]) << 16 * part;
        }
        *all[lane].registers[matrix] = pair;
      }
  });
}

}  // namespace

void ldmatrix_sync_aligned_m8n8_x4_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned at) {
  load_matrices(false, {&a, &b, &c, &d}, at);
}
void ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16(unsigned& a, unsigned& b, unsigned& c, unsigned& d, unsigned at) {
  load_matrices(true, {&a, &b, &c, &d}, at);
}

namespace {

template <int terms>
void add_products(const std::array<Given, WARP>& all, const float (&a)[16][terms], const float (&b)[terms][8]) {
  for (int lane = 0; lane < WARP; ++lane)
    for (int i = 0; i < 4; ++i) {
      int row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
      double sum = *all[lane].sums[i];
      for (int k = 0; k < terms; ++k) sum += double(a[row][k]) * b[k][column];
      *all[lane].sums[i] = sum;
    }
}

float tf32(unsigned word) {
  if (word & 0x1fff && std::isfinite(__uint_as_float(word))) fail("a factor is not rounded to tf32");
  return __uint_as_float(word);
}

template <class T>
float element(unsigned pair, int part) {
  T value;
  value.bits = pair >> 16 * part;
  return value;
}

template <class T>
void multiply(const char* name, std::array<float*, 4> d, std::array<float*, 4> c, std::array<unsigned, 6> words) {
  if (c != d) fail("C is not D");
  together({name, words, 0, {}, d}, [](const auto& all) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < WARP; ++lane) {
      int group = lane >> 2, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        int row = (i < 2 || (4 <= i && i < 6)) ? group : group + 8;
        int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        a[row][column] = element<T>(all[lane].words[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i)
        b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = element<T>(all[lane].words[4 + i / 2], i % 2);
    }
    add_products<16>(all, a, b);
  });
}

}  // namespace

MULTIPLY(mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32) {
  multiply<nv_bfloat16>("bf16", {&d0, &d1, &d2, &d3}, {&c0, &c1, &c2, &c3}, {a0, a1, a2, a3, b0, b1});
}
MULTIPLY(mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32) {
  if (&c0 != &d0 || &c1 != &d1 || &c2 != &d2 || &c3 != &d3) fail("C is not D");
  together({"tf32", {a0, a1, a2, a3, b0, b1}, 0, {}, {&d0, &d1, &d2, &d3}}, [](const auto& all) {
    float a[16][8], b[8][8];
    for (int lane = 0; lane < WARP; ++lane) {
      int group = lane >> 2, in_group = lane % 4;
      for (int i = 0; i < 4; ++i) a[i == 0 || i == 2 ? group : group + 8][i < 2 ? in_group : in_group + 4] = tf32(all[lane].words[i]);
      for (int i = 0; i < 2; ++i) b[i == 0 ? in_group : in_group + 4][group] = tf32(all[lane].words[4 + i]);
    }
    add_products<8>(all, a, b);
  });
}

void cvt_rna_tf32_f32(unsigned& to, float from) {
  std::memcpy(&to, &from, 4);
  if (std::isfinite(from)) to = (to + 0x1000) & ~0x1fffu;  // to nearest, ties away from zero
}

MULTIPLY(mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32) {
  multiply<half>("f16", {&d0, &d1, &d2, &d3}, {&c0, &c1, &c2, &c3}, {a0, a1, a2, a3, b0, b1});
}

void shfl_sync_bfly_b32(float& to, float from, int distance, int last, int members) {
  if (last != WARP - 1 || members != -1) fail("an exchange of a part of a warp");
  unsigned word;
  std::memcpy(&word, &from, 4);
  together({"shfl.bfly", {word}, unsigned(distance), {}, {&to}}, [](const auto& all) {
    for (int lane = 0; lane < WARP; ++lane) *all[lane].sums[0] = __uint_as_float(all[lane ^ all[lane].address].words[0]);
  });
}

void agree(const char* what, const void* address) {
  together({what, {}, unsigned(static_cast<const char*>(address) - origin), {}, {}}, [](const auto& all) {
    for (const Given& each : all)
      if (each.address != all[0].address) fail("threads of a SIMD group have several addresses");
  });
}
