#include "references.h"

#include <algorithm>
#include <deque>
#include <mutex>

namespace ovtrain::hevc {

namespace {

// Unused pictures that a process keeps: so many bytes, and of larger pictures two per decoder, which
// would otherwise free and ask for one with each packet.
constexpr size_t MOST_UNUSED = size_t(16) << 20, MOST_PER_DECODER = 2;

// 8.3.1: a picture order count has 32 bits, and one for differences is kept free here.
int checked_poc(int64_t poc) {
    require(poc >= -(int64_t(1) << 30) && poc < int64_t(1) << 30, "a picture order count is out of range");
    return int(poc);
}

bool same_size(const Picture& picture, const SequenceParameterSet& sps) {
    return picture.sets->sps->width == sps.width && picture.sets->sps->height == sps.height;
}

// Pictures that nobody holds, kept for their memory, last used last.
class UnusedPictures {
public:
    std::unique_ptr<Picture> take(const SequenceParameterSet& sps) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto fits = [&](const auto& picture) { return same_size(*picture, sps); };
        const auto found = std::find_if(pictures_.rbegin(), pictures_.rend(), fits);
        if (found == pictures_.rend()) return nullptr;
        std::unique_ptr<Picture> picture = std::move(*found);
        pictures_.erase(std::next(found).base());
        bytes_ -= picture->bytes();
        return picture;
    }

    void give(std::unique_ptr<Picture> picture) {
        const std::lock_guard<std::mutex> lock(mutex_);
        bytes_ += picture->bytes();
        pictures_.push_back(std::move(picture));
        trim();
    }

    // A decoder more, or less
    void serve(int change) {
        const std::lock_guard<std::mutex> lock(mutex_);
        decoders_ += size_t(change);
        trim();
    }

private:
    void trim() {
        while (bytes_ > MOST_UNUSED && pictures_.size() > MOST_PER_DECODER * decoders_) {
            bytes_ -= pictures_.front()->bytes();
            pictures_.pop_front();
        }
    }

    std::mutex mutex_;
    size_t decoders_ = 0;
    std::deque<std::unique_ptr<Picture>> pictures_;
    size_t bytes_ = 0;
};

// Never destroyed: a picture may be let go of while the process ends.
UnusedPictures& unused_pictures() {
    static auto* const pictures = new UnusedPictures;
    return *pictures;
}

}  // namespace

// A.4.2, (A-2), at level 6.2
size_t most_pictures(const SequenceParameterSet& sps) {
    const int64_t samples = int64_t(sps.width) * sps.height, most = MAX_LUMA_SAMPLES;
    if (samples <= most / 4) return 16;
    if (samples <= most / 2) return 12;
    return samples <= most * 3 / 4 ? 8 : 6;
}

int picture_order_count(const SliceHeader& header, int log2_max_lsb, int previous,
                        bool starts_sequence) {
    if (header.nal.is_idr()) return 0;
    if (starts_sequence) return header.poc_lsb;
    const int size = 1 << log2_max_lsb;
    const int previous_lsb = previous & (size - 1);
    int64_t msb = int64_t(previous) - previous_lsb;
    if (header.poc_lsb < previous_lsb && previous_lsb - header.poc_lsb >= size / 2)
        msb += size;
    else if (header.poc_lsb > previous_lsb && header.poc_lsb - previous_lsb > size / 2)
        msb -= size;
    return checked_poc(msb + header.poc_lsb);
}

PicturePtr fresh_picture(std::shared_ptr<const ActiveSets> sets, Wanted wanted) {
    std::unique_ptr<Picture> picture = unused_pictures().take(*sets->sps);
    if (!picture) picture = std::make_unique<Picture>();
    picture->reset(std::move(sets), wanted);
    return PicturePtr(picture.release(), [](Picture* dropped) {
        unused_pictures().give(std::unique_ptr<Picture>(dropped));
    });
}

PictureBuffer::PictureBuffer() { unused_pictures().serve(1); }

PictureBuffer::~PictureBuffer() { unused_pictures().serve(-1); }

PicturePtr PictureBuffer::find(int poc, int mask, bool any_marking) const {
    for (const auto& picture : pictures_)
        if ((picture->poc & mask) == (poc & mask) &&
            (picture->marking == Marking::short_term ||
             (any_marking && picture->marking == Marking::long_term)))
            return picture;
    return nullptr;
}

// 8.3.3.2: a picture without motion; nothing of it is output
PicturePtr PictureBuffer::absent(const Picture& current, int poc, Marking marking) {
    PicturePtr picture = fresh_picture(current.sets, Wanted{false, false});
    picture->poc = poc;
    picture->sequence = current.sequence;
    picture->marking = marking;
    picture->generated = true;
    picture->ok = false;
    picture->slices.emplace_back();
    pictures_.push_back(picture);
    return picture;
}

ReferenceSets PictureBuffer::apply(const SliceHeader& header, const Picture& current) {
    require(header.long_term.size() + size_t(header.short_term.count()) <=
                most_pictures(*current.sets->sps),
            "more references than a decoder holds pictures");
    ReferenceSets sets;
    const int every = -1, lsb = (1 << current.sets->sps->log2_max_poc_lsb) - 1;
    std::vector<PicturePtr> kept;
    // Long-term entries first: they are looked for among all references (8.3.2).
    std::vector<PicturePtr> turned;
    for (const auto& entry : header.long_term) {
        const int64_t base =
            int64_t(current.poc) - header.poc_lsb - int64_t(entry.msb_cycle) * (lsb + 1);
        const int poc = entry.has_msb ? checked_poc(base + entry.poc) : entry.poc;
        PicturePtr found = find(poc, entry.has_msb ? every : lsb, true);
        if (!found && entry.used) found = absent(current, poc, Marking::long_term);
        if (!found) continue;
        sets.missing |= entry.used && found->generated;
        turned.push_back(found);
        if (entry.used) sets.long_term.push_back(found);
    }
    for (int i = 0; i < header.short_term.count(); ++i) {
        const auto& entry = header.short_term.at(i);
        const int poc = current.poc + entry.delta_poc;
        PicturePtr found = find(poc, every, false);
        if (!found && entry.used) found = absent(current, poc, Marking::short_term);
        if (!found) continue;
        sets.missing |= entry.used && found->generated;
        kept.push_back(found);
        if (entry.used)
            (i < header.short_term.negative_count ? sets.before : sets.after).push_back(found);
    }
    for (const auto& picture : pictures_) picture->marking = Marking::unused;
    for (const auto& picture : kept) picture->marking = Marking::short_term;
    for (const auto& picture : turned) picture->marking = Marking::long_term;
    return sets;
}

void PictureBuffer::unmark_all() {
    for (const auto& picture : pictures_) picture->marking = Marking::unused;
}

bool PictureBuffer::overfull() const {
    return !pictures_.empty() && pictures_.size() > most_pictures(*pictures_.back()->sets->sps);
}

void PictureBuffer::tidy() {
    while (overfull()) {
        pictures_.front()->marking = Marking::unused;
        pictures_.front()->waits_for_output = false;
        pictures_.erase(pictures_.begin());
    }
    const auto unneeded = [](const PicturePtr& picture) {
        return picture->marking == Marking::unused && !picture->waits_for_output;
    };
    pictures_.erase(std::remove_if(pictures_.begin(), pictures_.end(), unneeded), pictures_.end());
}

PicturePtr PictureBuffer::next_output() const {
    PicturePtr first;
    for (const auto& picture : pictures_) {
        if (!picture->waits_for_output) continue;
        if (!first || picture->sequence < first->sequence ||
            (picture->sequence == first->sequence && picture->poc < first->poc))
            first = picture;
    }
    return first;
}

int PictureBuffer::waiting() const {
    return int(std::count_if(pictures_.begin(), pictures_.end(), [](const PicturePtr& picture) {
        return picture->waits_for_output;
    }));
}

ReferenceLists build_lists(const SliceHeader& header, const ReferenceSets& sets) {
    ReferenceLists lists;
    for (int list = 0; list < header.lists(); ++list) {
        const auto l = size_t(list);
        std::vector<PicturePtr> all;  // RefPicListTemp, once through
        const auto& near = list ? sets.after : sets.before;
        const auto& far = list ? sets.before : sets.after;
        for (const auto* part : {&near, &far, &sets.long_term})
            all.insert(all.end(), part->begin(), part->end());
        require(!all.empty(), "an inter slice without reference pictures");
        for (int i = 0; i < header.references[l]; ++i) {
            const size_t entry = header.lists_modified[l] ? header.list_entries[l][size_t(i)]
                                                          : size_t(i) % all.size();
            require(entry < all.size(), "a list entry is none of the references");
            lists[l][size_t(i)] = all[entry];
        }
    }
    return lists;
}

}  // namespace ovtrain::hevc
