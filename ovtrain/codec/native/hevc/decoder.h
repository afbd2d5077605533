// From packets to pictures in output order (ITU-T H.265, 8.1, C.5.2).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coding_tree.h"
#include "nal.h"
#include "references.h"

namespace ovtrain::hevc {

// A picture that was read over: its place in output order, whether decoding can start at it, and
// whether it is shown.
struct Skimmed {
    uint64_t sequence;
    int poc;
    bool random_access;
    bool shown;
};

class Decoder {
public:
    // ``configuration``: the container's hvcC record or annex B parameter sets; may be empty
    Decoder(Wanted wanted, Span configuration);

    // New parameter sets of the container, where they change in mid-stream
    void configure(Span configuration);

    // Decode one packet. Damage marks the picture it meets; Unsupported is thrown.
    void push(Span packet, int64_t tag);

    // Read one packet's parameter sets and first slice header only: what decoding from a later random
    // access picture on must know. Nothing where no picture starts in it.
    std::optional<Skimmed> skim(Span packet);

    // No more packets: every picture may be output.
    void flush();

    // The next picture in output order, or null until more packets have come
    PicturePtr pop();

    // NAL units that could not be decoded and belong to no picture
    int lost_units() const { return lost_units_; }
    const std::string& last_fault() const { return last_fault_; }

private:
    void decode_nal(Span nal, int64_t tag);
    void store_parameters(Span nal, const NalHeader& header);
    void store_sps(BitReader bits);
    void store_pps(BitReader bits);
    std::shared_ptr<const ActiveSets> find_sets(int pps_id);
    void decode_slice(Span nal, const NalHeader& header, int64_t tag);
    bool place_picture(const SliceHeader& header, int log2_max_poc_lsb);
    bool start_picture(const ParsedHeader& parsed, int64_t tag);
    void decode_segment(const ParsedHeader& parsed, Span payload);
    void start_slice(const SliceHeader& header, const SequenceParameterSet& sps);
    void finish_picture();
    void release(int most_waiting);
    void fault(const char* what);

    Wanted wanted_;
    int length_bytes_ = 0;
    std::map<int, std::shared_ptr<const SequenceParameterSet>> sps_;
    std::map<int, std::shared_ptr<const PictureParameterSet>> pps_;
    std::map<int, std::shared_ptr<const ActiveSets>> active_;
    PictureBuffer buffer_;
    std::deque<PicturePtr> ready_;
    PicturePtr current_;
    ReferenceSets references_;
    ReferenceLists lists_;
    SliceHeader previous_header_;
    bool has_previous_header_ = false;
    SegmentCarry carry_;
    std::vector<uint8_t> payload_;  // of the last unit
    uint64_t sequence_ = 0;
    int poc_ = 0;                   // of the last picture
    int previous_poc_ = 0;          // of the last picture that others count from (8.3.1)
    bool starts_sequence_ = true;   // the next picture is the first, or follows an end of sequence
    bool drops_rasl_ = false;       // NoRaslOutputFlag of the last IRAP picture
    bool was_skimmed_ = false;      // what came before the next picture was not decoded
    int lost_units_ = 0;
    std::string last_fault_;
};

}  // namespace ovtrain::hevc
