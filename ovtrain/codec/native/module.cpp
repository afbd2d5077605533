#include "bindings.h"

NB_MODULE(_native, m) {
    bind_kernels(m);
    bind_hevc(m);
}
