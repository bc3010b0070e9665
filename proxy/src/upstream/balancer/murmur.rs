//! MurmurHash2 in the 64 bit form that libstdc++ has, which rings may be made with.

const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
/// libstdc++'s seed.
pub(super) const SEED: u64 = 0xc70f_6907;

fn shift_mix(value: u64) -> u64 {
    value ^ (value >> 47)
}

pub(super) fn murmur2(key: &[u8], seed: u64) -> u64 {
    let mut hash = seed ^ (key.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        let data = shift_mix(u64::from_le_bytes(*word).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ data).wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let data = rest.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        hash = (hash ^ data).wrapping_mul(MULTIPLIER);
    }
    shift_mix(shift_mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `std::hash<std::string>` of libstdc++, which uses the same function and seed.
    #[test]
    fn known_values() {
        assert_eq!(murmur2(b"", SEED), 6142509188972423790);
        assert_eq!(murmur2(b"a", SEED), 4993892634952068459);
        assert_eq!(murmur2(b"abcdefgh", SEED), 8664279048047335611);
        assert_eq!(murmur2(b"abcdefghi", SEED), 13036955925923793583);
    }
}
