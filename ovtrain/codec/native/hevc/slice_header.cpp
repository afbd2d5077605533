#include "slice_header.h"

#include <algorithm>

namespace ovtrain::hevc {

namespace {

// Ceil(Log2(count))
int bits_for(int count) {
    int bits = 0;
    while ((1 << bits) < count) ++bits;
    return bits;
}

void parse_long_term(BitReader& bits, const SequenceParameterSet& sps, SliceHeader& header) {
    const int known = int(sps.long_term_poc_lsb.size());
    const int from_sps = known ? int(bits.ue(uint32_t(known))) : 0;
    const int total = from_sps + int(bits.ue(MAX_REFERENCES));
    require(total <= 2 * MAX_REFERENCES, "too many long-term references");
    for (int i = 0; i < total; ++i) {
        LongTermEntry entry;
        if (i < from_sps) {
            const size_t index = bits.u(bits_for(known));
            require(index < size_t(known), "a long-term reference is none of the sequence's");
            entry.poc = sps.long_term_poc_lsb[index];
            entry.used = sps.long_term_used[index];
        } else {
            entry.poc = int(bits.u(sps.log2_max_poc_lsb));
            entry.used = bits.flag();
        }
        entry.has_msb = bits.flag();
        if (entry.has_msb) entry.msb_cycle = int(bits.ue(0xFFFFFF));
        if (i > 0 && i != from_sps) {  // (7-52)
            entry.msb_cycle += header.long_term.back().msb_cycle;
            require(entry.msb_cycle <= 0xFFFFFF, "a long-term reference is out of range");
        }
        header.long_term.push_back(entry);
    }
}

void parse_reference_sets(BitReader& bits, const SequenceParameterSet& sps, SliceHeader& header) {
    header.poc_lsb = int(bits.u(sps.log2_max_poc_lsb));
    const int known = int(sps.short_term_sets.size());
    if (!bits.flag()) {
        header.short_term = parse_short_term_set(bits, sps.short_term_sets, true);
    } else {
        const size_t index = bits.u(bits_for(known));
        require(index < size_t(known), "a reference picture set is none of the sequence's");
        header.short_term = sps.short_term_sets[index];
    }
    if (sps.long_term_present) parse_long_term(bits, sps, header);
    if (sps.temporal_mvp) header.temporal_mvp = bits.flag();
}

// 7.3.6.2
void parse_list_modification(BitReader& bits, SliceHeader& header) {
    const int entries = header.used_references();
    for (int list = 0; list < header.lists(); ++list) {
        const auto l = size_t(list);
        header.lists_modified[l] = bits.flag();
        if (!header.lists_modified[l]) continue;
        for (int i = 0; i < header.references[l]; ++i) {
            const uint32_t entry = bits.u(bits_for(entries));
            require(int(entry) < entries, "a list entry is none of the references");
            header.list_entries[l][size_t(i)] = uint8_t(entry);
        }
    }
}

void skip_chroma_weights(BitReader& bits) {
    for (int component = 0; component < 2; ++component) {
        bits.se();
        bits.se();
    }
}

// 7.3.6.3, 7.4.7.3; the chroma weights are read over
void parse_weights(BitReader& bits, const SequenceParameterSet& sps, SliceHeader& header) {
    WeightTable& table = header.weights;
    table.log2_denominator = int(bits.ue(7));
    const bool chroma = sps.chroma_format != 0;
    if (chroma) bits.se(-7, 7);
    const int range = sps.high_precision_offsets ? 1 << (sps.bit_depth - 1) : 128;
    for (int list = 0; list < header.lists(); ++list) {
        const auto l = size_t(list);
        bool luma_flags[MAX_REFERENCES] = {}, chroma_flags[MAX_REFERENCES] = {};
        for (int i = 0; i < header.references[l]; ++i) luma_flags[i] = bits.flag();
        for (int i = 0; chroma && i < header.references[l]; ++i) chroma_flags[i] = bits.flag();
        for (int i = 0; i < header.references[l]; ++i) {
            LumaWeight& entry = table.luma[l][size_t(i)];
            entry = {int16_t(1 << table.log2_denominator), 0};
            if (luma_flags[i]) {
                entry.weight = int16_t(entry.weight + bits.se(-128, 127));
                entry.offset = int16_t(bits.se(-range, range - 1));
            }
            if (chroma_flags[i]) skip_chroma_weights(bits);
        }
    }
}

void parse_inter(BitReader& bits, const ActiveSets& sets, SliceHeader& header) {
    const auto& pps = *sets.pps;
    const bool own_counts = bits.flag();
    for (int list = 0; list < header.lists(); ++list)
        header.references[size_t(list)] =
            own_counts ? int(bits.ue(MAX_REFERENCES - 2)) + 1 : pps.default_references[list];
    require(header.used_references() > 0, "an inter slice without reference pictures");
    if (pps.lists_modification && header.used_references() > 1)
        parse_list_modification(bits, header);
    if (header.type == SliceType::b) header.mvd_l1_zero = bits.flag();
    if (pps.cabac_init_present) header.cabac_init = bits.flag();
    if (header.temporal_mvp) {
        if (header.type == SliceType::b) header.collocated_from_l0 = bits.flag();
        const int count = header.references[header.collocated_from_l0 ? 0 : 1];
        if (count > 1) header.collocated_index = int(bits.ue(uint32_t(count - 1)));
    }
    header.weighted = header.type == SliceType::p ? pps.weighted_pred : pps.weighted_bipred;
    if (header.weighted) parse_weights(bits, *sets.sps, header);
    header.max_merge_candidates = 5 - int(bits.ue(4));
}

// The rest of an independent segment's header, from slice_qp_delta on
void parse_quality(BitReader& bits, const ActiveSets& sets, SliceHeader& header) {
    const auto& pps = *sets.pps;
    header.qp = pps.init_qp + bits.se(-100, 100);
    require(header.qp >= -sets.sps->qp_offset() && header.qp <= 51, "the slice's QP is out of range");
    if (pps.slice_chroma_qp_offsets) {
        bits.se(-12, 12);
        bits.se(-12, 12);
    }
    if (pps.chroma_qp_offset_lists) header.cu_chroma_qp_offset = bits.flag();
    bool disabled = pps.deblocking_disabled;
    if (pps.deblocking_override && bits.flag()) {
        disabled = bits.flag();
        if (!disabled) {
            bits.se(-6, 6);
            bits.se(-6, 6);
        }
    }
    if (pps.loop_filter_across_slices && (header.sao_luma || header.sao_chroma || !disabled))
        bits.skip(1);
}

void parse_independent(BitReader& bits, const ActiveSets& sets, SliceHeader& header) {
    const auto& sps = *sets.sps;
    bits.skip(size_t(sets.pps->extra_slice_header_bits));
    header.type = SliceType(bits.ue(2));
    if (sets.pps->output_flag_present) header.output = bits.flag();
    if (!header.nal.is_idr()) parse_reference_sets(bits, sps, header);
    if (sps.sao_enabled) {
        header.sao_luma = bits.flag();
        if (sps.chroma_format != 0) header.sao_chroma = bits.flag();
    }
    if (header.type != SliceType::i) parse_inter(bits, sets, header);
    parse_quality(bits, sets, header);
}

// Substreams follow one another without gaps, so that the entry points tell nothing new.
void skip_entry_points(BitReader& bits, const ActiveSets& sets) {
    if (!sets.pps->tiles && !sets.pps->entropy_sync) return;
    const uint32_t count = bits.ue(uint32_t(sets.sps->ctb_count()));
    if (count) bits.skip(size_t(bits.ue(31) + 1) * count);
}

}  // namespace

int SliceHeader::used_references() const {
    int used = 0;
    for (int i = 0; i < short_term.count(); ++i) used += short_term.at(i).used;
    for (const auto& entry : long_term) used += entry.used;
    return used;
}

ParsedHeader parse_slice_header(BitReader& bits, const NalHeader& nal, const FindSets& find,
                                const SliceHeader* previous) {
    const bool first = bits.flag();
    // Pictures that wait are output all the same: every coded frame has signals.
    if (nal.is_irap()) bits.skip(1);  // no_output_of_prior_pics_flag
    const auto sets = find(int(bits.ue(63)));
    bool dependent = false;
    int address = 0;
    if (!first) {
        if (sets->pps->dependent_slices) dependent = bits.flag();
        address = int(bits.u(bits_for(sets->sps->ctb_count())));
        require(address > 0 && address < sets->sps->ctb_count(), "a slice starts outside");
    }
    SliceHeader header;
    if (dependent) {
        require(previous != nullptr, "a dependent slice segment follows no other");
        header = *previous;
    } else {
        header.slice_address = address;
    }
    header.nal = nal;
    header.first_in_picture = first;
    header.dependent = dependent;
    header.segment_address = address;
    if (!dependent) parse_independent(bits, *sets, header);
    skip_entry_points(bits, *sets);
    if (sets->pps->slice_header_extension) bits.skip(size_t(bits.ue(256)) * 8);
    require(bits.flag(), "the slice header does not end in its alignment bit");
    bits.align();
    header.data_offset = bits.position() / 8;
    return {std::move(header), sets};
}

}  // namespace ovtrain::hevc
