"""The INT8 linear layer in C++: every version gives the bits of torch's operator for any shape and number of
rows and threads, and the operator gives the same bits without integer products."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from balancer.errors import InputError, UnsupportedError
from balancer.models.quantization import modules, native
from balancer.models.quantization.modules import Int8Linear, int8_linear, quantize_rows

SIZES = (1, 3, 63, 64, 65, 3072)
ROWS = 130
SOME_ROWS = (1, 2, 5, 6, 7, 12, 13, 47, 48, 49, 95, 96, 97, 129, ROWS)
KERNELS = Path(native.__file__).parent / "kernels"
pytestmark = pytest.mark.skipif(native.absence() is not None, reason=str(native.absence()))


def layer(k: int, n: int, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1000 * k + n)
    weight, scale = quantize_rows(torch.randn(n, k, generator=generator))
    return weight, scale, torch.randn(n, generator=generator) if bias else None


def rows(k: int) -> Tensor:
    """Rows of every magnitude, with ties, and with values that are not finite."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(ROWS, k, generator=generator) * torch.randn(ROWS, 1, generator=generator).exp()
    x[1], x[3], x[4], x[5] = 0.0, x[3] / x[3].abs().max() * 1e38, x[4] * 1e-41, x[5] * 1e-37
    x[6] = torch.arange(k) % 254 - 126.5
    x[6, 0] = 127.0
    x[7] = 127.0
    x[8, -1], x[9, 0], x[10, k // 2] = torch.nan, torch.inf, -torch.inf
    x[128, -1] = torch.nan
    return x


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(found[number].view(torch.int32), expected[number].view(torch.int32))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("version", native.VERSIONS)
def test_every_version_has_the_bits_of_torch(version: str) -> None:
    if version not in native.supported_versions():
        pytest.skip(f"this processor has no {version}")
    for k in SIZES:
        x = rows(k)
        for n in SIZES:
            weight, scale, bias = layer(k, n, bias=(k + n) % 3 > 0)
            expected = int8_linear(x, weight, scale, bias)
            assert expected[[8, 9, 10, 128]].isnan().all()
            assert not expected[:8].isnan().any()
            packed = native.PackedLinear(weight, scale, bias, version)
            small = k * n < 10_000
            for count in range(1, ROWS + 1) if k == n == 65 else SOME_ROWS if small else (1, 7, ROWS):
                assert_same(packed.multiply(x[:count]), expected[:count])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("version", native.VERSIONS)
def test_threads_divide_rows_and_change_nothing(version: str) -> None:
    if version not in native.supported_versions():
        pytest.skip(f"this processor has no {version}")
    weight, scale, bias = layer(64, 3072)
    x, packed = rows(64), native.PackedLinear(weight, scale, bias, version)
    expected = int8_linear(x, weight, scale, bias)
    for count in (1, 2):
        torch.set_num_threads(count)
        assert_same(packed.multiply(x), expected)


@pytest.mark.parametrize("k", [1, 2, 1039, 1040, 1041, 3072])
def test_the_operator_is_exact_without_integer_products(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, bias = layer(k, 5)
    weight[0] = 127
    weight[1] = -127
    x = rows(k)
    whole = x.nan_to_num(0.0, 0.0, 0.0)
    step = (whole.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    product = (whole / step).round().double() @ weight.double().t()
    assert bias is not None
    expected = (product.float() * step) * scale + bias
    finite = x.isfinite().all(1)
    for integers in {False, modules._INTEGER_PRODUCTS}:
        monkeypatch.setattr(modules, "_INTEGER_PRODUCTS", integers)
        found = int8_linear(x, weight, scale, bias)
        assert torch.equal(found[finite], expected[finite])
        assert found[~finite].isnan().all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(int8_linear(x, weight, scale, bias)[finite], expected[finite])


def test_the_variable_restricts_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, bias = layer(64, 48)
    x = rows(64)
    expected = int8_linear(x, weight, scale, bias)
    for version in native.supported_versions():
        monkeypatch.setenv("BALANCER_INSTRUCTIONS", version)
        native.instruction_set.cache_clear()
        try:
            assert native.instruction_set() == version
            assert_same(Int8Linear(weight, scale, bias)(x), expected)
        finally:
            native.instruction_set.cache_clear()
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "sse9")
    with pytest.raises(InputError, match="BALANCER_INSTRUCTIONS=sse9: no such instruction set; use one of portable"):
        Int8Linear(weight, scale, bias)(x)
    monkeypatch.setattr("balancer.native_library.processor_instructions", lambda: ("portable",))
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "avx2")
    with pytest.raises(UnsupportedError, match="does not have these instructions; use one of portable"):
        Int8Linear(weight, scale, bias)(x)


def test_a_replaced_tensor_is_used() -> None:
    weight, scale, bias = layer(64, 48)
    x, changed = rows(64), Int8Linear(weight, scale, bias)
    before = changed(x)
    other, other_scale, other_bias = layer(64, 48, bias=True)
    changed.stored, changed.scale, changed.stored_bias = -other, 2 * other_scale, other_bias
    assert_same(changed(x), int8_linear(x, -other, 2 * other_scale, other_bias))
    changed.load_state_dict(Int8Linear(weight, scale, bias).state_dict())
    assert_same(changed(x), before)


def compiled(compiler: str, folder: Path, *flags: str) -> Path:
    """Compile int8_versions.cpp, or skip the test if there is no such compiler."""
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    program = folder / "int8_versions"
    source = Path(__file__).with_name("int8_versions.cpp")
    command = [
        compiler,
        "-O1",
        "-std=c++17",
        "-ffp-contract=off",
        "-w",
        "-pthread",
        *flags,
        f"-I{KERNELS}",
        str(source),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["max", "cortex-a57"], ids=["with dot products", "without"])
def test_neon_has_the_bits_of_the_portable_version(cpu: str, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("there is no qemu-aarch64")
    program = compiled("aarch64-linux-gnu-g++", tmp_path, "-static")
    done = subprocess.run(["qemu-aarch64", "-cpu", cpu, str(program)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    versions = int(done.stdout.split()[1].rstrip(","))
    assert versions == (7 if cpu == "max" else 3)


def test_every_version_of_this_processor_has_the_bits_of_the_portable_one(tmp_path: Path) -> None:
    done = subprocess.run([str(compiled("g++", tmp_path))], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
