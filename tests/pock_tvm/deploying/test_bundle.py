"""Bundles against the trainer: the same losses, outputs and states, bit by bit."""

import ctypes
import shutil
import subprocess
import sys
import zlib

import numpy as np
import psutil
import pytest
import torch

import pock_tvm as pock
from pock_tvm.deploying.bundle import deploy
from pock_tvm.deploying.toolchain import SOURCES, WARNINGS

from .bundles import CASES, RATE, batch_of, compiled, loaded

STEPS = 20
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing")


def take(program, trainer, net, steps, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        inputs, target = batch_of(program, rng)
        given = inputs if target is None else [*inputs, target]
        assert net.train_step(*given) == trainer.step(inputs, target, lr=RATE)
    outputs = trainer.predict(inputs)
    for ours, theirs in zip(net.predict(*inputs), outputs if isinstance(outputs, tuple) else [outputs], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def same_state(path, trainer, program):
    other = pock.Trainer(program, threads=1)
    other.restore(path)
    mine, theirs = other._state(), trainer._state()
    assert (mine.steps, mine.updates, mine.pending) == (theirs.steps, theirs.updates, theirs.pending)
    for name, array in theirs.weights.items():
        np.testing.assert_array_equal(mine.weights[name], array, err_msg=name)
    for ours, each in zip(mine.states, theirs.states, strict=True):
        np.testing.assert_array_equal(ours.values, each.values, err_msg=each.of)
    return other


@pytest.mark.parametrize("name", CASES)
def test_losses_outputs_and_states(name, tmp_path):
    program = compiled(name)
    folder = deploy(program, tmp_path / "net", cc="gcc")
    clang = [sys.executable, "-m", "ziglang", "cc", *WARNINGS, "-c", "-o", str(tmp_path / "pock.o")]
    subprocess.run([*clang, f"-I{folder}/runtime", f"-I{folder}/kernels", str(folder / "pock.c")], check=True)
    module, trainer = loaded(folder), pock.Trainer(program, threads=1)
    net, twin = module.Net(), module.Net()
    net.set_rate(RATE)
    twin.set_rate(RATE)
    take(program, trainer, net, STEPS)
    # From C to Python, within an accumulation where there is one; then from Python to C, to another instance.
    (tmp_path / "device.ckpt").write_bytes(net.save_state())
    trainer = same_state(tmp_path / "device.ckpt", trainer, program)
    trainer.save(tmp_path / "host.ckpt")
    twin.load_state((tmp_path / "host.ckpt").read_bytes())
    assert twin.save_state() == net.save_state()
    take(program, trainer, twin, 3, seed=1)
    (tmp_path / "twin.ckpt").write_bytes(twin.save_state())
    same_state(tmp_path / "twin.ckpt", trainer, program)
    assert net.save_state() == (tmp_path / "device.ckpt").read_bytes()  # the instances are apart


@pytest.mark.slow
def test_mcunet(shared_data, tmp_path):
    model = torch.export.load(shared_data / "models" / "mcunet-5fps-flowers12.pt2")
    options = {"scheme": pock.Scheme({"*": "frozen", "*.bias": "full"}), "optimizer": pock.SGD(momentum=0.9)}
    program = pock.compile(model, batch=1, check=False, **options)
    folder = deploy(program, tmp_path / "net", threads=2)
    net = loaded(folder).Net()
    net.set_rate(RATE)
    take(program, pock.Trainer(program, threads=2), net, STEPS)
    net.close()


def test_zig_and_threads(tmp_path):
    program = compiled("sparse, AdamW")
    folder = deploy(program, tmp_path / "net", threads=2)
    net = loaded(folder).Net()
    net.set_rate(RATE)
    take(program, pock.Trainer(program, threads=2), net, 5)
    net.close()
    net.close()  # the second one has nothing to stop


def test_a_dropped_network_stops_its_threads(tmp_path):
    module = loaded(deploy(compiled("mse"), tmp_path / "net", cc="gcc", threads=2))
    before = psutil.Process().num_threads()
    net = module.Net()
    assert psutil.Process().num_threads() == before + 1
    del net
    assert psutil.Process().num_threads() == before


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    program = compiled("momentum, dampening, accumulated")
    return program, deploy(program, tmp_path_factory.mktemp("bundle") / "net", cc="gcc")


def test_embedded_weights(small, tmp_path):
    program, _ = small
    folder = deploy(program, tmp_path / "net", cc="gcc", embed_weights=True)
    assert not (folder / "weights.bin").exists()
    net = loaded(folder).Net()
    net.set_rate(RATE)
    take(program, pock.Trainer(program, threads=1), net, 2)


def test_rates_of_adam(small):
    """The C code's powers and roots against Python's, in float32, for 10,000 steps."""
    _, folder = small
    library = ctypes.CDLL(str(runtime_library(folder)))
    library.pock_power.argtypes, library.pock_power.restype = [ctypes.c_double, ctypes.c_uint64], ctypes.c_double
    library.pock_square_root.argtypes, library.pock_square_root.restype = [ctypes.c_double], ctypes.c_double
    for lr, betas in ((float(np.float32(1e-3)), (0.9, 0.999)), (float(np.float32(0.02)), (0.8, 0.99))):
        for step in range(1, 10_001):
            first, second = (1 - library.pock_power(beta, step) for beta in betas)
            ours = [lr, lr / first, 1 / library.pock_square_root(second)]
            assert np.array_equal(np.float32(ours), np.float32(pock.Adam(betas).rates(lr, step))), step


def runtime_library(folder):
    path = folder / "runtime.so"
    source = str(folder / "runtime" / "pock_runtime.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", f"-I{folder}/kernels", source, "-o", str(path)], check=True)
    return path


def refused(call, *arguments):
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.value.code, str(caught.value)


def test_faults_of_a_step_leave_the_state_as_it_was(small):
    program, folder = small
    net = loaded(folder).Net()
    x, y = np.ones((8, 12), "float32"), np.zeros(8, "int64")
    assert refused(net.train_step, x, y)[0] == "RATE"
    assert refused(net.set_rate, float("nan"))[0] == "RATE"
    net.set_rate(RATE)
    before = net.save_state()
    bad = x.copy()
    bad[3, 2] = np.inf
    code, reason = refused(net.train_step, bad, y)
    assert code == "NOT_FINITE" and "input 'input' is not finite" in reason and "Nothing has changed" in reason
    code, reason = refused(net.train_step, x, y + 5)
    assert code == "INPUT" and "the label 5, which is out of range: they go from 0 to 4" in reason
    code, reason = refused(net.train_step, x * 1e38, y)
    assert code == "NOT_FINITE" and "Nothing has changed" in reason
    assert net.save_state() == before


def test_a_bad_gradient_drops_sums_as_the_trainer_does(small, tmp_path):
    program, folder = small
    module, trainer = loaded(folder), pock.Trainer(program, threads=1)
    net = module.Net()
    net.set_rate(RATE)
    x, y = np.full((8, 12), 1e-3, "float32"), np.zeros(8, "int64")
    # Hidden values of zero hide the steep weights from the loss, not from the gradients.
    steep = {name: np.zeros_like(array) for name, array in trainer.weights().items()}
    steep["2.weight"] += np.float32(3e38) * np.array([[-1], [1], [1], [1], [1]], "float32")
    trainer.load_state_dict(steep)
    trainer.save(tmp_path / "steep.ckpt")
    net.load_state((tmp_path / "steep.ckpt").read_bytes())
    assert net.train_step(x, y) == trainer.step(x, y, lr=RATE)
    with pytest.raises(pock.NonFiniteError) as caught:
        trainer.step(x * 1e5, y, lr=RATE)
    code, reason = refused(net.train_step, x * 1e5, y)
    assert code == "NOT_FINITE" and caught.value.what.split(" is not")[0] in reason and "are dropped" in reason
    (tmp_path / "after.ckpt").write_bytes(net.save_state())
    same_state(tmp_path / "after.ckpt", trainer, program)


def test_indices_out_of_range(tmp_path):
    program = compiled("indices")
    net = loaded(deploy(program, tmp_path / "net", cc="gcc")).Net()
    net.set_rate(RATE)
    words = np.full((8, 6), 40)
    assert refused(net.predict, words) == ("INPUT", refused(net.train_step, words, np.zeros(8, "int64"))[1])
    assert "input 'words' holds 40" in refused(net.predict, words)[1]


def rewritten(data, old, new):
    """A state with other text in its header, under a fitting checksum."""
    at = data.index(b'"header_crc32":"') + 16
    data = data.replace(old, new, 1)
    size = 8 + int.from_bytes(data[:8], "little")
    head = data[:at] + b"00000000" + data[at + 8 : size]
    return data[:at] + b"%08x" % zlib.crc32(head) + data[at + 8 :]


def test_states_of_other_networks(small):
    _, folder = small
    net = loaded(folder).Net()
    state = net.save_state()
    for old, new in ((b"0.9", b"0.8"), (b'"accumulate":"3"', b'"accumulate":"2"'), (b"[32,12]", b"[12,32]")):
        assert refused(net.load_state, rewritten(state, old, new))[0] == "OTHER_NETWORK"
    assert refused(net.load_state, state[:-1])[0] == "DAMAGED"
    assert refused(net.load_state, state + b"0")[0] == "DAMAGED"
    assert refused(net.load_state, b"")[0] == "DAMAGED"
    assert net.save_state() == state


def test_damaged_states_and_weights(small):
    _, folder = small
    module = loaded(folder)
    net = module.Net()
    state, rng = net.save_state(), np.random.default_rng(0)
    for case in range(500):
        damaged = bytearray(state)
        header = 8 + int.from_bytes(state[:8], "little")
        at = int(rng.integers(0, header if case % 2 else len(state)))
        damaged[at] ^= 1 << int(rng.integers(8))
        damaged = bytes(damaged[: int(rng.integers(len(state)))] if case % 5 == 0 else damaged)
        assert refused(net.load_state, damaged)[0] == "DAMAGED", case
    assert net.save_state() == state
    weights = np.fromfile(folder / "weights.bin", np.uint8)
    weights[7] ^= 1
    assert refused(module.Net, folder, weights)[0] == "WEIGHTS"


def test_scanner_under_fitting_checksums(small):
    """Headers whose checksum fits are read as they are, or refused: never outside of the buffer (see sanitizers)."""
    _, folder = small
    net = loaded(folder).Net()
    state, rng, codes = net.save_state(), np.random.default_rng(0), set()
    header, own = 8 + int.from_bytes(state[:8], "little"), state.index(b'"header_crc32":"')
    for at in (at for at in rng.integers(8, header, 500) if not own <= at < own + 25):
        byte = bytes([int(rng.choice(list(b'"\\{}[],:09a')))])
        damaged = rewritten(state[:at] + byte + state[at + 1 :], b"", b"")
        try:
            net.load_state(damaged)
        except Exception as error:
            codes.add(error.code)
    assert codes <= {"DAMAGED", "OTHER_NETWORK"} and "OTHER_NETWORK" in codes


@pytest.mark.parametrize("threads, sanitizers", [(1, "address,undefined"), (2, "thread")])
def test_main_under_sanitizers(small, tmp_path, threads, sanitizers):
    program, folder = small
    rows = [f"{','.join(['0.5'] * 12)},{row % 5}\n" for row in range(24)]
    (tmp_path / "data.csv").write_text("".join(rows))
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    sources = [folder / "main.c", folder / "pock.c", *sorted((folder / "runtime").glob("*.c"))]
    objects = sorted((folder / "kernels").glob("*.o"))
    main = tmp_path / "main"
    subprocess.run(
        ["gcc", *flags, f"-DPOCK_THREADS={threads}", "-pthread", f"-I{folder}/runtime", f"-I{folder}/kernels",
         *map(str, [*sources, *objects]), "-lm", "-o", str(main)],
        check=True,
    )  # fmt: skip
    run = [str(main), str(tmp_path / "data.csv"), "0.01", "3", str(tmp_path / "state"), str(folder / "weights.bin")]
    for _ in range(2):  # the second run goes on from the first one's state
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch") == 3
    trainer = pock.Trainer(program, threads=1)
    assert trainer.restore(tmp_path / "state").steps == 18


def test_sizes(small, tmp_path):
    _, folder = small
    sizes = {}
    for source in SOURCES:
        made = tmp_path / f"{source.replace('/', '_')}.o"
        subprocess.run(
            ["gcc", "-std=c11", "-Os", "-ffunction-sections", f"-I{folder}/runtime", f"-I{folder}/kernels", "-c",
             str(folder / source), "-o", str(made)],
            check=True,
        )  # fmt: skip
        said = subprocess.run(["size", "-A", str(made)], capture_output=True, text=True, check=True).stdout
        sections = [
            line.split() for line in said.splitlines() if line.startswith((".text", ".rodata", ".data", ".bss"))
        ]
        sizes[source] = {name: int(size) for name, size, *_ in sections}
    state = sum(sizes["runtime/pock_state.c"].values()) + sizes["runtime/pock_runtime.c"][".text.pock_crc32"]
    assert 1000 < state < 4096
    assert sum(sum(each.values()) for each in sizes.values()) < 32 * 1024


def test_refusals(small, tmp_path, monkeypatch):
    program, _ = small
    program.save(tmp_path / "slim.pock", slim=True)
    with pytest.raises(pock.PockError, match="slim"):
        deploy(tmp_path / "slim.pock", tmp_path / "net")
    with pytest.raises(pock.PockError, match="there is no C compiler 'nocc'"):
        deploy(program, tmp_path / "net", cc="nocc")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(pock.PockError, match="holds other files"):
        deploy(program, tmp_path / "mine", cc="gcc")
    with pytest.raises(pock.PockError, match="cannot be written"):
        deploy(program, tmp_path / "mine" / "notes.txt", cc="gcc", build=False)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    monkeypatch.setattr("pock_tvm.deploying.toolchain.WARNINGS", ("-no-such-flag",))
    with pytest.raises(pock.PockError, match="fails to build the bundle"):
        deploy(program, tmp_path / "net", cc="gcc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "slim.pock"]
