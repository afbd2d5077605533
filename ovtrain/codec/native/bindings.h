// The parts of the extension module; each binds itself.
#pragma once

#include <nanobind/nanobind.h>

void bind_kernels(nanobind::module_& m);  // kernels.cpp: pixel estimate and energy
void bind_hevc(nanobind::module_& m);     // hevc/: side information of HEVC bitstreams
