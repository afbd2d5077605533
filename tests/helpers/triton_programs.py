"""Triton's kernels without a GPU: in its interpreter, and compiled for one."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def fresh_module(name: str) -> ModuleType:
    """Made anew: ``triton.jit`` looks at TRITON_INTERPRET once, when the module is read."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of modules made from now on run on CPU tensors."""
    import triton.language as tl

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # Functions in triton's own language, which only its first import can make interpreted ones;
    # tl.reduce is built in.
    for name, combine in (("sum", "_sum_combine"), ("max", "_elementwise_max")):
        pair = getattr(tl.standard, combine)
        monkeypatch.setattr(tl, name, lambda x, axis, pair=pair: tl.reduce(x, axis, pair))


def recorded_launches(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[Any]:
    """Kernels launched from now on are not run but listed: (kernel, arguments, options), as ``ptx``
    takes them."""
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    if not isinstance(tl.sum, JITFunction):
        pytest.skip("TRITON_INTERPRET was set when triton was imported")
    launches: list[Any] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append((kernel, args, options))

    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(JITFunction, "run", record)
    return launches


def ptx(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What ``kernel`` becomes on an H100 for a launch with ``args``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    given = dict(zip(kernel.arg_names, args, strict=False))
    constants = {name: value for name, value in given.items() if value is None}
    constants |= {name: options.pop(name) for name in kernel.arg_names if name in options}
    signature = dict.fromkeys(constants, "constexpr")
    for parameter in kernel.params:
        if parameter.name not in constants:
            kind = triton.runtime.jit.mangle_type(given[parameter.name])
            signature[parameter.name] = parameter.annotation_type or kind
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
