// Picture order counts, reference picture sets and lists (ITU-T H.265, 8.3.1 - 8.3.4).
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "picture.h"

namespace ovtrain::hevc {

using PicturePtr = std::shared_ptr<Picture>;

// The reference pictures of the current picture by kind (8.3.2), absent ones replaced (8.3.3).
struct ReferenceSets {
    std::vector<PicturePtr> before, after, long_term;  // StCurrBefore, StCurrAfter, LtCurr
    bool missing = false;  // one that is used was lost, so that what refers to it is not exact
};

// The lists of a slice; entries behind the slice's counts are null.
using ReferenceLists = std::array<std::array<PicturePtr, MAX_REFERENCES>, 2>;

// 8.3.1; ``previous`` is the POC of the last picture of temporal layer 0 that is no RASL, RADL or
// sub-layer non-reference picture.
int picture_order_count(const SliceHeader& header, int log2_max_lsb, int previous,
                        bool starts_sequence);

// MaxDpbSize: how many pictures of this size a stream may ask a decoder to hold (A.4.2).
size_t most_pictures(const SequenceParameterSet& sps);

// An empty picture. Its memory is that of one of its size that nobody holds any more, where there is
// one: of any decoder of the process, so that a clip does not fault in every page anew.
PicturePtr fresh_picture(std::shared_ptr<const ActiveSets> sets, Wanted wanted);

// Decoded pictures that are still referenced or still wait for output.
class PictureBuffer {
public:
    PictureBuffer();
    ~PictureBuffer();
    PictureBuffer(const PictureBuffer&) = delete;
    PictureBuffer& operator=(const PictureBuffer&) = delete;

    // 8.3.2: mark what the header's sets no longer hold as unused, and return what they hold.
    ReferenceSets apply(const SliceHeader& header, const Picture& current);

    void insert(PicturePtr picture) { pictures_.push_back(std::move(picture)); }

    // No picture is a reference any more (an IRAP picture that starts a sequence).
    void unmark_all();

    // Whether it holds more than a conforming stream asks for
    bool overfull() const;

    // Drop the pictures that nobody needs, and the oldest where there are too many.
    void tidy();

    // The waiting picture that comes first in output order (C.5.2.4), or null
    PicturePtr next_output() const;
    int waiting() const;

private:
    PicturePtr find(int poc, int mask, bool any_marking) const;
    PicturePtr absent(const Picture& current, int poc, Marking marking);

    std::vector<PicturePtr> pictures_;
};

// 8.3.4. Throws Damaged where a list entry has no picture.
ReferenceLists build_lists(const SliceHeader& header, const ReferenceSets& sets);

}  // namespace ovtrain::hevc
