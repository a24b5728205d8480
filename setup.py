"""The extension modules; all else is in pyproject.toml."""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "boundscheck": False,
    "wraparound": False,
    "nonecheck": False,
    "initializedcheck": False,
    "cdivision": True,
    "auto_pickle": False,
}

trace = bool(os.environ.get("FASTHOOK_TRACE"))  # line tracing, for coverage of .pyx lines
sanitize = bool(os.environ.get("FASTHOOK_SANITIZE"))  # address and undefined-behaviour sanitizers
annotate = bool(os.environ.get("FASTHOOK_ANNOTATE"))  # the yellow HTML beside each .pyx

compile_args = ["/O2", "/std:c11"] if sys.platform == "win32" else ["-O3", "-std=gnu11", "-Wno-unused-function"]
link_args: list[str] = ["-Wl,-S"] if sys.platform == "darwin" else []  # no paths of the build in it
macros: list[tuple[str, str | None]] = []
if sanitize:
    compile_args += ["-g", "-O1", "-fno-omit-frame-pointer"]
    compile_args += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    link_args += ["-fsanitize=address,undefined"]
if trace:
    DIRECTIVES["linetrace"] = True
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]


def extension(name: str) -> Extension:
    return Extension(
        f"fasthook.{name}",
        [f"src/fasthook/{name}.pyx"],
        depends=[*glob("src/fasthook/*.pxd"), "src/fasthook/_native.h"],
        include_dirs=["src/fasthook"],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )


setup(
    ext_modules=cythonize(
        [extension(name) for name in ("_scan", "_core", "_head", "_framing", "_protocol", "_asgi")],
        compiler_directives=DIRECTIVES,
        annotate=annotate,
    )
)
