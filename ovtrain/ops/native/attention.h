// Softmax attention of one head over one sequence, forward and backward, for CPUs with AVX-512 and
// its bfloat16 products. Scores are never whole in memory; sums are float32, what is multiplied is
// bfloat16. Each call runs on one thread and gives the same bits every time.
#pragma once

#include <cstdint>

// Rows of one head, `stride` elements apart; each is contiguous.
struct HeadRows {
    uint16_t* data;
    int64_t stride;
};

// n tokens, d head_dim (a multiple of 32); scores are multiplied by `scale`.
struct HeadShape {
    int64_t n, d;
    float scale;
};

struct HeadGradients {
    HeadRows q, k, v;
};

bool attention_runs_here();

// Bytes that a call needs, of any alignment of 64.
int64_t forward_scratch(HeadShape shape);
int64_t backward_scratch(HeadShape shape);

// `lse` (n): base-2 logarithms of the sums of exp(scores), for the backward pass.
void attend(HeadShape shape, HeadRows q, HeadRows k, HeadRows v, HeadRows out, float* lse,
            void* scratch);
void attend_backward(HeadShape shape, HeadRows q, HeadRows k, HeadRows v, HeadRows out,
                     const float* lse, HeadRows grad, HeadGradients to, void* scratch);
