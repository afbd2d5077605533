#include "decoder.h"

#include <algorithm>

namespace ovtrain::hevc {

Decoder::Decoder(Wanted wanted, Span configuration) : wanted_(wanted) {
    configure(configuration);
}

void Decoder::configure(Span configuration) {
    const Configuration found = parse_configuration(configuration);
    length_bytes_ = found.length_bytes;
    for (const Span& nal : found.nals) decode_nal(nal, -1);
}

void Decoder::push(Span packet, int64_t tag) {
    for (const Span& nal : split_nals(packet, length_bytes_)) decode_nal(nal, tag);
}

void Decoder::flush() {
    finish_picture();
    release(0);
    starts_sequence_ = true;
}

PicturePtr Decoder::pop() {
    if (ready_.empty()) return nullptr;
    PicturePtr picture = std::move(ready_.front());
    ready_.pop_front();
    return picture;
}

void Decoder::fault(const char* what) {
    last_fault_ = what;
    if (current_)
        current_->ok = false;
    else
        ++lost_units_;
}

void Decoder::decode_nal(Span nal, int64_t tag) {
    try {
        const NalHeader header = parse_nal_header(nal);
        if (header.layer > 0) return;
        if (header.is_slice()) return decode_slice(nal, header, tag);
        if (header.type >= VPS && header.type <= END_OF_BITSTREAM) finish_picture();
        if (header.type == END_OF_SEQUENCE || header.type == END_OF_BITSTREAM)
            starts_sequence_ = true;
        if (header.type == SPS || header.type == PPS) store_parameters(nal, header);
    } catch (const Damaged& error) {
        fault(error.what());
    }
}

std::optional<Skimmed> Decoder::skim(Span packet) {
    std::optional<Skimmed> found;
    was_skimmed_ = true;
    for (const Span& nal : split_nals(packet, length_bytes_)) {
        try {
            const NalHeader header = parse_nal_header(nal);
            if (header.layer > 0) continue;
            if (header.type == END_OF_SEQUENCE || header.type == END_OF_BITSTREAM)
                starts_sequence_ = true;
            if (header.type == SPS || header.type == PPS) store_parameters(nal, header);
            if (found || !header.is_slice() || nal.bytes <= 3 || !(nal.data[2] & 0x80)) continue;
            const Span payload = extract_payload(nal, payload_);
            BitReader bits(payload.data, payload.bytes);
            const ParsedHeader parsed = parse_slice_header(
                bits, header, [this](int id) { return find_sets(id); }, nullptr);
            const bool decodes = place_picture(parsed.header, parsed.sets->sps->log2_max_poc_lsb);
            found = Skimmed{sequence_, poc_, header.is_irap(), decodes && parsed.header.output};
        } catch (const Damaged&) {
            // It is met again where the packet is decoded.
        }
    }
    return found;
}

void Decoder::store_parameters(Span nal, const NalHeader& header) {
    const Span payload = extract_payload(nal, payload_);
    const BitReader bits(payload.data, payload.bytes);
    header.type == SPS ? store_sps(bits) : store_pps(bits);
}

void Decoder::store_sps(BitReader bits) {
    auto sps = std::make_shared<const SequenceParameterSet>(parse_sps(bits));
    active_.clear();
    sps_[sps->id] = std::move(sps);
}

void Decoder::store_pps(BitReader bits) {
    auto pps = std::make_shared<const PictureParameterSet>(parse_pps(bits));
    active_.erase(pps->id);
    pps_[pps->id] = std::move(pps);
}

std::shared_ptr<const ActiveSets> Decoder::find_sets(int pps_id) {
    auto& active = active_[pps_id];
    if (!active) {
        const auto pps = pps_.find(pps_id);
        require(pps != pps_.end(), "a slice names a picture parameter set that never came");
        const auto sps = sps_.find(pps->second->sps_id);
        require(sps != sps_.end(), "a slice names a sequence parameter set that never came");
        active = std::make_shared<const ActiveSets>(sps->second, pps->second);
    }
    return active;
}

void Decoder::decode_slice(Span nal, const NalHeader& nal_header, int64_t tag) {
    require(nal.bytes > 3, "a slice without data");
    if (nal.data[2] & 0x80) finish_picture();  // first_slice_segment_in_pic_flag
    const Span payload = extract_payload(nal, payload_);
    BitReader bits(payload.data, payload.bytes);
    const ParsedHeader parsed = parse_slice_header(
        bits, nal_header, [this](int id) { return find_sets(id); },
        has_previous_header_ ? &previous_header_ : nullptr);
    if (parsed.header.first_in_picture) {
        if (!start_picture(parsed, tag)) return;
    } else {
        if (!current_ && drops_rasl_ && nal_header.is_rasl()) return;
        require(current_ != nullptr, "a slice whose picture's first slice never came");
        require(parsed.sets->sps == current_->sets->sps, "the size changes inside a picture");
    }
    decode_segment(parsed, payload);
}

// 8.1.3, 8.3.1: the picture's sequence and order count; false where it is not decoded (RASL behind a
// random access)
bool Decoder::place_picture(const SliceHeader& header, int log2_max_poc_lsb) {
    const bool irap = header.nal.is_irap();
    const bool starts = irap && (header.nal.is_idr() || header.nal.is_bla() || starts_sequence_);
    require(irap || !starts_sequence_, "the stream does not start with a random access picture");
    if (irap) drops_rasl_ = starts;
    if (header.nal.is_rasl() && drops_rasl_) return false;
    starts_sequence_ = false;
    if (starts) ++sequence_;
    poc_ = picture_order_count(header, log2_max_poc_lsb, previous_poc_, starts);
    if (header.nal.temporal_id == 0 && !header.nal.is_rasl() && !header.nal.is_radl() &&
        !header.nal.is_sub_layer_non_reference())
        previous_poc_ = poc_;
    return true;
}

// False where the picture is not decoded
bool Decoder::start_picture(const ParsedHeader& parsed, int64_t tag) {
    const SliceHeader& header = parsed.header;
    const uint64_t sequence = sequence_;
    if (!place_picture(header, parsed.sets->sps->log2_max_poc_lsb)) return false;
    if (was_skimmed_ && header.nal.is_irap()) drops_rasl_ = true;
    was_skimmed_ = false;
    if (sequence_ != sequence) {
        release(0);
        buffer_.unmark_all();
    }
    // A packet holds one picture; this bounds what many in one would hold until they are popped.
    require(ready_.size() <= most_pictures(*parsed.sets->sps), "too many pictures in a packet");
    current_ = fresh_picture(parsed.sets, wanted_);
    current_->sequence = sequence_;
    current_->tag = tag;
    current_->poc = poc_;
    current_->waits_for_output = header.output;
    references_ = ReferenceSets();
    if (!header.nal.is_idr()) references_ = buffer_.apply(header, *current_);
    // An IRAP picture reads none of them; leading pictures that do are marked themselves.
    if (references_.missing && !header.nal.is_irap()) current_->ok = false;
    buffer_.tidy();
    return true;
}

void Decoder::decode_segment(const ParsedHeader& parsed, Span payload) {
    const SliceHeader& header = parsed.header;
    const int& first_block = current_->slice_address[size_t(header.segment_address)];
    require(first_block < 0, "two slices hold the same block");
    if (!header.dependent) start_slice(header, *parsed.sets->sps);
    if (header.type == SliceType::b || (header.type == SliceType::p && current_->type == SliceType::i))
        current_->type = header.type;
    previous_header_ = header;
    has_previous_header_ = true;
    const SliceContext context(*parsed.sets, *current_, previous_header_, lists_);
    try {
        SliceDecoder decoder(context, wanted_, carry_);
        decoder.decode(payload.data + header.data_offset, payload.bytes - header.data_offset);
    } catch (const Damaged&) {
        if (!header.dependent && first_block < 0) {  // nothing refers to it
            current_->slices.pop_back();
            has_previous_header_ = false;
        }
        throw;
    }
}

// The lists of an independent slice, and what they tell of its vectors
void Decoder::start_slice(const SliceHeader& header, const SequenceParameterSet& sps) {
    require(current_->slices.size() <= 0xFFFF, "more slices than a picture can have");
    if (header.type != SliceType::i) lists_ = build_lists(header, references_);
    SliceReferences slice;
    slice.weights = header.weights;
    slice.weighted = header.weighted;
    for (int list = 0; list < header.lists(); ++list)
        for (int i = 0; i < header.references[size_t(list)]; ++i) {
            const Picture& picture = *lists_[size_t(list)][size_t(i)];
            slice.poc[size_t(list)][size_t(i)] = picture.poc;
            slice.long_term[size_t(list)][size_t(i)] = picture.marking == Marking::long_term;
            require(picture.sets->sps->width == sps.width && picture.sets->sps->height == sps.height,
                    "a reference picture has another size");
        }
    current_->slices.push_back(slice);
    if (header.type == SliceType::i || !header.temporal_mvp) return;
    const size_t list = header.collocated_from_l0 ? 0 : 1;
    // Vectors that are predicted from damaged ones are as wrong.
    if (!lists_[list][size_t(header.collocated_index)]->ok) current_->ok = false;
}

void Decoder::finish_picture() {
    if (!current_) return;
    const auto& done = current_->slice_address;
    if (std::find(done.begin(), done.end(), -1) != done.end()) current_->ok = false;
    if (current_->slices.empty()) current_->slices.emplace_back();
    const int most_waiting = current_->sets->sps->max_num_reorder;
    current_->marking = Marking::short_term;
    buffer_.insert(std::move(current_));
    current_ = nullptr;
    has_previous_header_ = false;
    release(most_waiting);
}

// C.5.2.3: output pictures until no more than so many wait, and none that there is no room for
void Decoder::release(int most_waiting) {
    while (buffer_.waiting() > (buffer_.overfull() ? 0 : most_waiting)) {
        PicturePtr picture = buffer_.next_output();
        picture->waits_for_output = false;
        ready_.push_back(std::move(picture));
    }
    buffer_.tidy();
}

}  // namespace ovtrain::hevc
