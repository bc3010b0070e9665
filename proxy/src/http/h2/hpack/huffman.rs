//! HPACK's Huffman code (RFC 7541 appendix B). It is canonical, so the lengths say everything; all tables come of them when
//! this is compiled. Codes of up to eight bits, which is what text is made of, are found at one look.

use super::Broken;

/// The length of each symbol's code; the last is the end of a string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];
const END: u16 = 256;
const LONGEST: usize = 30;

/// Each symbol's code.
static CODES: [u32; 257] = CANON.codes;
/// Symbol and length of the code that begins with these eight bits; length 0: it is longer.
static SHORT: [(u8, u8); 256] = short();
static SYMBOLS: [u16; 257] = CANON.symbols;
static FIRST: [(u32, u16, u16); LONGEST + 1] = CANON.first;
const CANON: Canon = canon();

struct Canon {
    codes: [u32; 257],
    /// Symbols by code.
    symbols: [u16; 257],
    /// For each length: its first code, where its symbols begin, and how many there are.
    first: [(u32, u16, u16); LONGEST + 1],
}

const fn canon() -> Canon {
    let mut canon = Canon { codes: [0; 257], symbols: [0; 257], first: [(0, 0, 0); LONGEST + 1] };
    let (mut code, mut count, mut length) = (0_u32, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        canon.first[length] = (code, count as u16, 0);
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                canon.codes[symbol] = code;
                canon.symbols[count] = symbol as u16;
                canon.first[length].2 += 1;
                code += 1;
                count += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    canon
}

const fn short() -> [(u8, u8); 256] {
    let mut table = [(0, 0); 256];
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol];
        if length <= 8 {
            let first = (CANON.codes[symbol] << (8 - length)) as usize;
            let mut i = 0;
            while i < 1 << (8 - length) {
                table[first + i] = (symbol as u8, length);
                i += 1;
            }
        }
        symbol += 1;
    }
    table
}

/// Decodes `input` to the end of `out`.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
    // The shortest code has five bits.
    out.reserve(input.len() * 8 / 5 + 1);
    let mut input = input.iter();
    // The next bits, from the top of `bits`.
    let (mut bits, mut have) = (0_u64, 0_u32);
    loop {
        while have <= 56 {
            let Some(byte) = input.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        let (symbol, length) = SHORT[(bits >> 56) as usize];
        let (symbol, length) = if length > 0 { (symbol, u32::from(length)) } else { long(bits)? };
        if length > have || have == 0 {
            // What is left has to be the beginning of the end's code: ones, and less than a byte.
            let padding = have < 8 && bits >> (64 - have.max(1)) == (1 << have.max(1)) - 1;
            return if have == 0 || padding { Ok(()) } else { Err(Broken) };
        }
        out.push(symbol);
        bits <<= length;
        have -= length;
    }
}

/// A code of more than eight bits.
#[cold]
fn long(bits: u64) -> Result<(u8, u32), Broken> {
    for (length, (first, at, count)) in FIRST.iter().enumerate().skip(9) {
        let code = (bits >> (64 - length)) as u32;
        if code >= *first && code - first < u32::from(*count) {
            let symbol = SYMBOLS[usize::from(*at) + (code - first) as usize];
            // The end itself may not be sent. Ones that are padding look like it too: longer than what is left.
            return Ok((symbol as u8, if symbol == END { u32::MAX } else { length as u32 }));
        }
    }
    Err(Broken)
}

/// The length of `input` in bytes when it is encoded.
pub(super) fn encoded_len(input: &[u8]) -> usize {
    input.iter().map(|b| usize::from(LENGTHS[usize::from(*b)])).sum::<usize>().div_ceil(8)
}

/// Appends `input` in Huffman code.
pub(super) fn encode(input: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut have) = (0_u64, 0_u32);
    for byte in input {
        let length = u32::from(LENGTHS[usize::from(*byte)]);
        bits = bits << length | u64::from(CODES[usize::from(*byte)]);
        have += length;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push((bits << (8 - have)) as u8 | 0xff >> have);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_symbols_pass_both_ways() {
        let all: Vec<u8> = (0..=255).collect();
        for input in all.iter().map(std::slice::from_ref).chain([&all[..], b"", b"www.example.com"]) {
            let (mut coded, mut back) = (Vec::new(), Vec::new());
            encode(input, &mut coded);
            assert_eq!(coded.len(), encoded_len(input));
            assert_eq!(decode(&coded, &mut back), Ok(()), "{input:?}");
            assert_eq!(back, input);
        }
    }

    #[test]
    fn padding_is_the_end_and_short() {
        let decode = |input: &[u8]| decode(input, &mut Vec::new());
        // 'a' is 00011.
        assert_eq!(decode(&[0b0001_1111]), Ok(()));
        assert_eq!(decode(&[0b0001_1110]), Err(Broken), "no ones");
        assert_eq!(decode(&[0b0001_1111, 0xff]), Err(Broken), "a whole byte of it");
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), Err(Broken), "the end itself");
        assert_eq!(decode(&[0xff]), Err(Broken));
    }
}
