"""Prints a network's C code from its call lists: ``pock.h`` and ``pock.c``, and the prototypes of its kernels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.footprint.plan import HEAD_BYTES, STEPS, TARGET, Plan, called_kernels
from ..compiler.footprint.state_form import StateForm
from ..device import guards
from ..device.contract import nbytes
from ..device.losses import Loss
from ..device.program import Program
from ..device.random import RANDOM
from ..errors import PockError
from .templates import filled

C_TYPES = {
    "float32": "float", "float64": "double", "bool": "uint8_t",
    **{f"{kind}{bits}": f"{kind}{bits}_t" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""C's types of elements that callers hand over and get."""
TEXT_BYTES = 100
"""Bytes of a string in one line of C."""


@dataclass(frozen=True)
class Argument:
    """Array that a caller hands over or gets: an input, the target of the loss, an output."""

    name: str
    """By PyTorch, as errors say it."""
    variable: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return nbytes({"shape": self.shape, "dtype": self.dtype})

    @property
    def c_type(self) -> str:
        """Type of its elements in C."""
        return C_TYPES[self.dtype]


@dataclass(frozen=True)
class Arguments:
    """Arguments of a network's functions."""

    inputs: tuple[Argument, ...]
    target: Argument | None
    outputs: tuple[Argument, ...]


def arguments_of(program: Program) -> Arguments:
    """The arguments of a program's functions, each with a name that C takes.

    Raises
    ------
    PockError
        One is of half precision.
    """
    taken = {"net", "loss", TARGET}

    def argument(spec: Mapping[str, Any]) -> Argument:
        name = variable = re.sub(r"\W", "_", spec["name"], flags=re.ASCII)
        if name[:1].isdigit() or name in RESERVED:
            name = variable = f"x_{name}"
        number = 2
        while variable in taken:
            variable, number = f"{name}_{number}", number + 1
        taken.add(variable)
        if spec["dtype"] not in C_TYPES:
            raise PockError(
                f"'{spec['name']}' is {spec['dtype']}, which C has no type for: let the network take and return "
                "float32, and convert it there"
            )
        return Argument(spec["name"], variable, tuple(spec["shape"]), spec["dtype"])

    if len(program.manifest.get("targets", [])) > 1:
        raise PockError(
            "the program's loss takes several targets, and a bundle's step takes one: join them in one tensor"
        )
    target = program.tensor(TARGET)
    inputs = tuple(argument(spec) for spec in program.manifest["inputs"])
    outputs = tuple(argument(spec) for spec in program.manifest["outputs"])
    return Arguments(inputs, target and Argument(TARGET, TARGET, *target), outputs)


def given_arguments(program: Program) -> list[Argument]:
    """The arguments of a training step but the loss: inputs, then the target if there is one."""
    arguments = arguments_of(program)
    return [*arguments.inputs, *([arguments.target] if arguments.target else [])]


RESERVED = frozenset(
    re.findall(
        r"\w+",
        """
        auto break case char const continue default do double else enum extern float for goto if inline int long
        register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
        at check_indices check_state code i last losses m memcpy out_of_range pock rates refuse run_accumulate_step
        run_predict run_train_step step w words
        """,
    )
)
"""Words that no argument is called by: C's, and the names that the templates use beside arguments."""


def kernel_prototypes(program: Program) -> str:
    """``pock_kernels.h`` for kernels that are objects."""
    kernels = called_kernels(program).items()
    lines = [f"int32_t {kernel}({', '.join(['void *'] * count)});" for kernel, count in kernels]
    return filled("pock_kernels.h", kernels="\n".join(lines))


def header_code(program: Program, plan: Plan, form: StateForm) -> str:
    """``pock.h``: the functions of this network."""
    arguments, given = arguments_of(program), given_arguments(program)
    return filled(
        "pock.h",
        memory=plan.memory.size,
        weights=len(plan.weights),
        state=form.nbytes,
        alignment=plan.memory.alignment,
        step=_parameters(given),
        step_shapes=_shapes(given),
        predict=_parameters(arguments.inputs),
        outputs="".join(f", {each.c_type} *{each.variable}" for each in arguments.outputs),
        predict_shapes=_shapes([*arguments.inputs, *arguments.outputs]),
    )


def network_code(program: Program, plan: Plan, form: StateForm, checksum: int) -> str:
    """``pock.c``: the entry points as lists of calls, the checks of what a caller hands over, the form of states.

    ``checksum``: the CRC-32 of the weights.
    """
    arguments, manifest = arguments_of(program), program.manifest
    entries, places = manifest["entries"], plan.places
    given = given_arguments(program)
    drawing = {name for name, entry in entries.items() if any(each["name"] == RANDOM for each in entry["table"])}
    accumulate = int(manifest["options"]["accumulate"])
    run = "run_train_step(net)"
    if accumulate > 1:
        run = "last ? run_train_step(net) : run_accumulate_step(net)"
    start, size = plan.memory.sums
    return filled(
        "pock.c",
        head=HEAD_BYTES,
        alignment=plan.memory.alignment,
        checksum=f"0x{checksum:08x}",
        form=_form(form, accumulate),
        accumulate=accumulate,
        initial="\n".join(f"  memcpy(m + {each.memory}, w + {each.weights}, {each.size});" for each in plan.initial),
        clear_sums=f"memset((unsigned char *)net + {start}, 0, {size});" if size else "(void)net;",
        runs="\n".join(_run(name, entries[name], plan) for name in STEPS if name in entries),
        step=_parameters(given),
        predict=_parameters(arguments.inputs),
        outputs="".join(f", {each.c_type} *{each.variable}" for each in arguments.outputs),
        step_pointers=" || ".join(f"!{each.variable}" for each in given),
        predict_pointers=" || ".join(f"!{each.variable}" for each in (*arguments.inputs, *arguments.outputs)),
        index_checks="\n".join(_index_checks(program, arguments)) or "  (void)net;",
        unused="".join(
            f"  (void){each.variable};\n" for each in arguments.inputs if each.name not in program.index_limits
        ),
        names=", ".join(each.variable for each in arguments.inputs),
        label_checks="\n".join(_label_checks(program, arguments)),
        copies="\n".join(_copies(plan, given)),
        words=_words(program, plan, bool({"train_step", "accumulate_step"} & drawing)),
        predict_copies="\n".join(_copies(plan, arguments.inputs)),
        predict_words=_words(program, plan, "predict" in drawing),
        counted="\n".join(_counted(program, plan, arguments)),
        rates=_rates(manifest["optimizer"], plan),
        run=run,
        loss="\n".join(_loss(program, plan)),
        results="\n".join(
            f"  memcpy({each.variable}, m + {places[f'predict/result.{number}'].offset}, {each.nbytes});"
            for number, each in enumerate(arguments.outputs)
        ),
    )


def _parameters(arguments: Sequence[Argument]) -> str:
    return "".join(f", const {each.c_type} *{each.variable}" for each in arguments)


def _shapes(arguments: Sequence[Argument]) -> str:
    return ", ".join(f"{each.variable} {'x'.join(map(str, each.shape)) or 'scalar'}" for each in arguments)


def _run(name: str, entry: Mapping[str, Any], plan: Plan) -> str:
    """A function that makes the calls of an entry point."""
    body = "\n".join(_calls(name, entry, plan))
    spaces = [
        line
        for line, used in (
            ("  unsigned char *m = (unsigned char *)net;\n", "at(m, "),
            ("  unsigned char *w = (unsigned char *)net->weights;\n", "at(w, "),
        )
        if used in body
    ]
    return f"static int run_{name}(pock *net) {{\n{''.join(spaces)}{body}\n  return POCK_OK;\n}}\n"


def _calls(name: str, entry: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """A line for each call of a call list, with the tensors of the network that it reads or writes."""
    for kernel, operands, *rest in entry["calls"]:
        places = [str(plan.place(entry, name, *operand)) for operand in operands]
        known = [entry["table"][at]["name"] for at, _ in operands if at < len(entry["table"])]
        named = [each for each in dict.fromkeys(known) if not each.startswith(("constant.", "result."))]
        comment = f" /* {', '.join(named).replace('*/', '* /')} */" if named else ""
        if kernel == "copy":
            yield f"  memcpy({places[0]}, {places[1]}, {rest[0]});{comment}"
        elif kernel == guards.CHECK:
            count, dtype, kind, of, written, *more = rest
            what, holds, _ = guards.TEXTS[kind]
            what = "the target" if (kind, of) == (guards.INPUT, TARGET) else what.format(of)
            found = f"found(net, {c_string(what)}, {c_string(holds)}, WRITTEN_{written.upper()})"
            numbers = ", ".join(f"{place}, {size}" for place, size in zip(places, [count, *more], strict=True))
            function = "pock_all_factors" if more else f"pock_all_finite_{dtype}"
            yield f"  if (!{function}({numbers})) return {found};"
        else:
            yield f"  if ({kernel}({', '.join(places)})) return no_threads(net);{comment}"


def _index_checks(program: Program, arguments: Arguments) -> Iterator[str]:
    """Checks that indices lie in their tables."""
    for each in arguments.inputs:
        if each.name in program.index_limits:
            low, high = program.index_limits[each.name]
            yield f"  for (size_t i = 0; i < {each.count}; i++)"
            yield f"    if ((int64_t){each.variable}[i] < {low} || (int64_t){each.variable}[i] >= {high})"
            what = c_string(f"input '{each.name}' holds")
            yield f"      return out_of_range(net, {what}, {each.variable}[i], {low}, {high});"


def _label_checks(program: Program, arguments: Arguments) -> Iterator[str]:
    loss = Loss(**program.manifest["loss"])
    if arguments.target is None or not loss.has_classes:
        return
    output = program.manifest["outputs"][loss.output]["shape"]
    classes = output[-1] if loss.kind == "causal_lm" else output[1]
    yield f"  for (size_t i = 0; i < {arguments.target.count}; i++)"
    yield f"    if (target[i] != {loss.ignore_index} && (target[i] < 0 || target[i] >= {classes}))"
    yield f'      return out_of_range(net, "the target holds the label", target[i], 0, {classes});'


def _copies(plan: Plan, arguments: Sequence[Argument]) -> Iterator[str]:
    """Copies of what a caller hands over; an input that nothing reads has no memory."""
    for each in arguments:
        if each.name in plan.places:
            yield f"  memcpy(m + {plan.places[each.name].offset}, {each.variable}, {each.nbytes});"
        else:
            yield f"  (void){each.variable};"


def _words(program: Program, plan: Plan, is_drawing: bool) -> str:
    """The words that an entry point draws numbers by, as :func:`pock_tvm.device.random.words_of` has them."""
    if not is_drawing:
        return ""
    start, parts = plan.places[RANDOM].offset, program.manifest["options"]["micro_batches"]
    counts = ("net->counts[POCK_SEED]", "net->counts[POCK_STEPS]")
    pairs = [f"(uint32_t){count}, (uint32_t)({count} >> 32)" for count in counts]
    return (
        f"  uint32_t words[] = {{{', '.join(pairs)}, 0}};\n"
        f"  for (; words[4] < {parts}; words[4]++)\n"
        f"    memcpy(m + {start} + words[4] * sizeof words, words, sizeof words);"
    )


def _counted(program: Program, plan: Plan, arguments: Arguments) -> Iterator[str]:
    """The number of values that the loss averages over, where a step reads it."""
    found, loss, target = program.tensor("counted"), Loss(**program.manifest["loss"]), arguments.target
    if found is None or target is None:
        return
    kind = C_TYPES[found[1]]
    if loss.has_classes:
        yield f"  {kind} counted = 0;"
        row = target.shape[-1] if loss.kind == "causal_lm" else 0
        skipped = f"i % {row} && " if row else ""
        yield f"  for (size_t i = 0; i < {target.count}; i++)"
        yield f"    if ({skipped}target[i] != {loss.ignore_index}) counted++;"
    else:
        yield f"  {kind} counted = {target.count};"
    yield f"  memcpy(m + {plan.places['counted'].offset}, &counted, sizeof counted);"


def _rates(optimizer: Mapping[str, Any], plan: Plan) -> str:
    """The optimizer's rates at the next update, as :mod:`pock_tvm.device.optimizers` has them."""
    if "rates" not in plan.places:
        return ""
    if optimizer["kind"] == "sgd":
        dampened = optimizer["momentum"] and optimizer["dampening"]
        first = f"step == 1 ? 1.0f : (float){1 - optimizer['dampening']!r}"
        rates = ["net->rate", *([first] if dampened else [])]
    else:
        beta1, beta2 = optimizer["betas"]
        rates = [
            "net->rate",
            f"(float)(net->rate / (1 - pock_power({beta1!r}, step)))",
            f"(float)(1 / pock_square_root(1 - pock_power({beta2!r}, step)))",
        ]
    step = "  uint64_t step = net->counts[POCK_UPDATES] + 1;\n" if "step" in "".join(rates) else ""
    return (
        f"{step}  const float rates[] = {{{', '.join(rates)}}};\n"
        f"  memcpy(m + {plan.places['rates'].offset}, rates, sizeof rates);"
    )


def _loss(program: Program, plan: Plan) -> Iterator[str]:
    """The loss of a step: the sum over its micro-batches."""
    entries = program.manifest["entries"]
    tensor = next(each for each in entries["train_step"]["table"] if each["name"] == "result.0")
    count, kind = int(np.prod(tensor["shape"])), C_TYPES[tensor["dtype"]]
    start = f"m + {plan.places['train_step/result.0'].offset}"
    if "accumulate_step" in entries:
        start = f"last ? {start} : m + {plan.places['accumulate_step/result.0'].offset}"
    yield f"  const {kind} *losses = (const {kind} *)({start});"
    yield "  *loss = (float)losses[0];"
    if count > 1:
        yield f"  for (size_t i = 1; i < {count}; i++) *loss += (float)losses[i];"


def _form(form: StateForm, accumulate: int) -> str:
    """The form of states, as constants."""
    text = "\n".join(f"    {line}" for line in _string_lines(form.header))
    axes: list[str] = []
    tensors = []
    for number, each in enumerate(form.tensors):
        numbers = ", ".join(map(str, (*each.shape, *each.strides)))
        axes.append(f"static const uint32_t axes_{number}[] = {{{numbers}}};")
        tensors.append(
            f"    {{{each.name}, {each.name_bytes}, {each.form_bytes}, {each.sum}, {each.place}, "
            f"{each.items}, {each.item_bytes}, {each.run}, {len(each.shape)}, axes_{number}}}, "
            f"/* {each.key.replace('*/', '* /')} */"
        )
    counts = ", ".join(map(str, form.counts))
    fields = ", ".join(f"{{{each.key}, {each.key_bytes}, {each.value_bytes}}}" for each in form.fields)
    return "\n".join(
        [
            f"static const unsigned char state_header[{len(form.header)} + 1] =",
            f"{text};",
            f"static const pock_field state_fields[] = {{{fields}}};",
            *axes,
            "static const pock_tensor state_tensors[] = {",
            *tensors,
            "};",
            f"static const pock_state state = {{state_header, {len(form.header)}, state_fields, "
            f"{len(form.fields)}, {{{counts}}}, {form.sum}, {len(form.counts)}, "
            f"state_tensors, {len(form.tensors)}, {accumulate}}};",
        ]
    )


def c_string(text: str) -> str:
    """A text as a string of C."""
    return f'"{_escaped(text.encode())}"'


def _string_lines(data: bytes) -> list[str]:
    return [f'"{_escaped(data[at : at + TEXT_BYTES])}"' for at in range(0, len(data), TEXT_BYTES)]


def _escaped(data: bytes) -> str:
    """Bytes as C writes them in a string: octal where they are not plain; a question mark could begin a trigraph."""
    return "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in data)
