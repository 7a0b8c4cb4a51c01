"""Words that dialects reserve: no variable of a kernel is called so."""

from __future__ import annotations

_C = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while bool true false
"""
_CPP = """
alignas alignof and and_eq asm bitand bitor catch class compl concept const_cast constexpr decltype delete dynamic_cast
explicit export friend mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
reinterpret_cast static_assert static_cast template this thread_local throw try typeid typename using virtual wchar_t
xor xor_eq
"""
_OPENCL = """
kernel global local constant private generic read_only write_only read_write half quad complex imaginary uchar ushort
uint ulong size_t ptrdiff_t event_t sampler_t image1d_t image2d_t image3d_t pipe uniform
"""
_METAL = """
kernel vertex fragment device constant thread threadgroup threadgroup_imageblock half uchar ushort uint ulong size_t
texture sampler metal atomic_int atomic_uint simd quad
"""
_WGSL = """
alias break case const const_assert continue continuing default diagnostic discard else enable false fn for if let loop
override requires return struct switch true var while
NULL Self abstract active alignas alignof as asm asm_fragment async attribute auto await become cast catch class
co_await co_return co_yield coherent column_major common compile compile_fragment concept const_cast consteval constexpr
constinit crate debugger decltype delete demote demote_to_helper do dynamic_cast enum explicit export extends extern
external fallthrough filter final finally friend from fxgroup get goto groupshared highp impl implements import inline
instanceof interface layout lowp macro macro_rules match mediump meta mod module move mut mutable namespace new nil
noexcept noinline nointerpolation non_coherent noncoherent noperspective null nullptr of operator package packoffset
partition pass patch pixelfragment precise precision premerge priv protected pub public readonly ref regardless register
reinterpret_cast require resource restrict self set shared sizeof smooth snorm static static_assert static_cast std
subroutine super target template this thread_local throw trait try type typedef typeid typename typeof union unless
unorm unsafe unsized use using varying virtual volatile wgsl where with writeonly yield
"""
_WGSL_FUNCTIONS = """
abs acos all any array asin atan atan2 atomic bitcast bool ceil clamp cos cosh countOneBits dot exp exp2 f16 f32 floor
fma fract i32 inverseSqrt log log2 max min modf pow round select sign sin sinh sqrt tan tanh trunc u32 vec2 vec3 vec4
"""
"""Names of WGSL that a variable may have, and then hides."""

RESERVED = {
    "cuda": frozenset((_C + _CPP).split()),
    "metal": frozenset((_C + _CPP + _METAL).split()),
    "opencl": frozenset((_C + _OPENCL).split()),
    "webgpu": frozenset((_WGSL + _WGSL_FUNCTIONS).split()),
}
"""Words by dialect."""
