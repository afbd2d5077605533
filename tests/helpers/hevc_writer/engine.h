// An arithmetic *encoder* (ITU-T H.265, 9.3.4.6) in the place of the decoder's engine: it answers
// every question with a drawn bin and writes that bin down. The decoder's own walk through the syntax
// so writes a stream that uses all of it; another decoder says whether the walk was right.
// Included by cabac.h inside its namespace; <random> and <vector> come before.

struct Writer {
    std::vector<uint8_t> bytes;
    std::mt19937 random;
    double surprise = 0.3;  // probability of the less probable bin
    long ctbs_left = 0;     // of the slice segment

    void start() {
        low_ = 0;
        range_ = 510;
        outstanding_ = 0;
        first_ = true;
    }

    bool draw(double probability) {
        return std::uniform_real_distribution<double>(0, 1)(random) < probability;
    }

    int code(uint16_t& model) {
        const uint64_t transition = tables::TRANSITIONS[model];
        const uint32_t lps = uint32_t(transition >> (range_ >> 3 & 24)) & 255;
        const bool less = draw(surprise);
        const int bin = (model & 1) ^ int(less);
        range_ -= lps;
        if (less) {
            low_ += range_;
            range_ = lps;
        }
        model = uint16_t(transition >> (less ? 40 : 32) & 255);
        renormalise();
        return bin;
    }

    void code_bypass(int bin) {
        low_ <<= 1;
        if (bin) low_ += range_;
        if (low_ >= 1024) {
            put(1);
            low_ -= 1024;
        } else if (low_ < 512) {
            put(0);
        } else {
            low_ -= 512;
            ++outstanding_;
        }
    }

    void code_terminate(bool end) {
        range_ -= 2;
        if (!end) return renormalise();
        low_ += range_;
        range_ = 2;
        renormalise();
        put(int(low_ >> 9 & 1));
        raw(int(low_ >> 8 & 1));
        raw(1);  // the stop bit
        align();
    }

    void raw(int bit) {
        if (filled_ == 0) bytes.push_back(0);
        bytes.back() = uint8_t(bytes.back() | bit << (7 - filled_));
        filled_ = (filled_ + 1) % 8;
    }

    void align() { filled_ = 0; }

private:
    void renormalise() {
        for (; range_ < 256; range_ <<= 1, low_ <<= 1) {
            if (low_ < 256) {
                put(0);
            } else if (low_ >= 512) {
                low_ -= 512;
                put(1);
            } else {
                low_ -= 256;
                ++outstanding_;
            }
        }
    }

    void put(int bit) {
        if (first_)
            first_ = false;
        else
            raw(bit);
        for (; outstanding_; --outstanding_) raw(1 - bit);
    }

    uint32_t low_ = 0, range_ = 510;
    long outstanding_ = 0;
    bool first_ = true;
    int filled_ = 0;
};

inline Writer& writer() {
    static Writer only;
    return only;
}

struct Engine {
    const uint8_t* data = nullptr;
    size_t bytes = 0;

    static constexpr size_t PADDING = 8;

    int bin(uint16_t& model) { return writer().code(model); }
    int even_bin(uint16_t& model) { return writer().code(model); }

    int bypass() {
        const int bin = writer().draw(0.45);
        writer().code_bypass(bin);
        return bin;
    }

    uint32_t bypass(int count) {
        uint32_t bins = 0;
        while (count-- > 0) bins = bins << 1 | uint32_t(bypass());
        return bins;
    }

    uint32_t peek() {
        uint32_t bins = 0;
        for (int i = 0; i < 16; ++i) bins = bins << 1 | uint32_t(writer().draw(0.35));
        return bins;
    }

    void take(uint32_t bins, int count) {
        while (count-- > 0) writer().code_bypass(int(bins >> count & 1));
    }

    bool terminate(Ending ending) {
        bool end = ending == Ending::substream;
        if (ending == Ending::slice_segment) end = --writer().ctbs_left == 0;
        if (ending == Ending::before_pcm) end = writer().draw(0.3);
        writer().code_terminate(end);
        return end;
    }

    void restart(size_t) { writer().start(); }

    void restart_behind(size_t bits) {
        while (bits-- > 0) writer().raw(writer().draw(0.5));
        writer().align();
        writer().start();
    }

    size_t bits_read() const { return writer().bytes.size() * 8; }
    bool overrun() const { return false; }
    void check_end() const {}
};
