//! The RFC's own examples, and both sides against each other and against rubbish.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
        .collect()
}

fn line(field: &Field) -> String {
    match field {
        Field::Pseudo(name, value) => format!("{}: {}", name.as_str(), String::from_utf8_lossy(value)),
        Field::Header(name, value) => format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())),
        Field::Malformed => "malformed".to_owned(),
    }
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Broken> {
    let mut lines = Vec::new();
    decoder.decode(block, |field| lines.push(line(&field)))?;
    Ok(lines)
}

/// Blocks, what is in them, and (entries, bytes) of the table after each.
type Example<'a> = (&'a str, &'a [&'a str], (usize, usize));

fn check(limit: usize, examples: &[Example<'_>]) {
    let mut decoder = Decoder::new(limit);
    // A small table is agreed upon by an update in the examples of appendix C.5 and C.6.
    if limit < DEFAULT_TABLE_SIZE {
        let mut update = Vec::new();
        put_integer(&mut update, 0x20, 5, limit);
        assert_eq!(decode(&mut decoder, &update), Ok(vec![]));
    }
    for (block, lines, table) in examples {
        assert_eq!(decode(&mut decoder, &hex(block)).expect("valid"), *lines);
        assert_eq!(decoder.table(), *table);
    }
}

const REQUESTS: [&[&str]; 3] = [
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"],
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"],
    &[
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ],
];

#[test]
fn requests_of_the_rfc() {
    let tables = [(1, 57), (2, 110), (3, 164)];
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let huffman = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    for blocks in [plain, huffman] {
        let examples: Vec<_> = (0..3).map(|i| (blocks[i], REQUESTS[i], tables[i])).collect();
        check(4096, &examples);
    }
}

#[test]
fn responses_of_the_rfc() {
    let first: &[&str] = &[
        ":status: 302",
        "cache-control: private",
        "date: Mon, 21 Oct 2013 20:13:21 GMT",
        "location: https://www.example.com",
    ];
    let second: &[&str] = &[
        ":status: 307",
        "cache-control: private",
        "date: Mon, 21 Oct 2013 20:13:21 GMT",
        "location: https://www.example.com",
    ];
    let third: &[&str] = &[
        ":status: 200",
        "cache-control: private",
        "date: Mon, 21 Oct 2013 20:13:22 GMT",
        "location: https://www.example.com",
        "content-encoding: gzip",
        "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
    ];
    let plain = [
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17\
         68747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153\
         444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
    ];
    let huffman = [
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f\
         3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ];
    for blocks in [plain, huffman] {
        check(256, &[(blocks[0], first, (4, 222)), (blocks[1], second, (4, 222)), (blocks[2], third, (3, 215))]);
    }
}

#[test]
fn integers_of_the_rfc() {
    for (value, prefix, bytes) in [(10, 5, &[10][..]), (1337, 5, &[31, 154, 10]), (42, 7, &[42])] {
        let mut out = Vec::new();
        put_integer(&mut out, 0, prefix, value);
        assert_eq!(out, bytes);
        assert_eq!(integer(bytes, prefix), Ok((value, &[][..])));
    }
    assert_eq!(integer(&[31, 0xff, 0xff, 0xff, 0xff, 0x7f], 5), Err(Broken), "too large");
}

#[test]
fn what_is_no_hpack_ends_the_connection() {
    let mut decoder = Decoder::new(4096);
    for block in ["80", "be", "82 3f e1 1f", "3f e2 1f", "40 05 61", "41 8c f1", "00 81 00 81 00", "ff ff ff ff ff"] {
        assert_eq!(decode(&mut decoder, &hex(block)), Err(Broken), "{block}");
    }
    // 'X', an empty name, an unknown pseudo-header, a value with a line's end.
    for block in ["00 01 58 01 61", "00 00 01 61", "00 02 3a 61 01 61", "00 01 61 01 0a"] {
        assert_eq!(decode(&mut decoder, &hex(block)).expect("HPACK"), ["malformed"]);
    }
}

#[test]
fn both_sides_keep_the_same_table() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::new(4096));
        for _ in 0..200 {
            if random.u8(..) < 8 {
                encoder.set_limit(random.usize(..6000));
            }
            let (mut block, mut sent) = (Vec::new(), Vec::new());
            encoder.begin(&mut block);
            if random.bool() {
                let path: String = (0..random.usize(1..90)).map(|_| random.alphanumeric()).collect();
                encoder.path(&mut block, path.as_bytes());
                sent.push(format!(":path: {path}"));
                encoder.authority(&mut block, b"example.com");
                sent.push(":authority: example.com".to_owned());
            } else {
                let status = ["200", "404", "418", "503"][random.usize(..4)];
                encoder.status(&mut block, status);
                sent.push(format!(":status: {status}"));
            }
            for _ in 0..random.usize(..12) {
                let name = ["server", "date", "x-a", "x-request-id", "cookie", "authorization", "content-length"]
                    [random.usize(..7)];
                let name = HeaderName::from_static(name);
                let length = if random.u8(..) < 4 { random.usize(..5000) } else { random.usize(..40) };
                let fresh = random.bool();
                let value = (0..length).map(|i| if fresh { random.u8(b' '..=b'~') } else { b'a' + (i % 26) as u8 });
                let value = HeaderValue::from_bytes(&value.collect::<Vec<u8>>()).expect("visible");
                encoder.header(&mut block, &name, &value);
                sent.push(line(&Field::Header(name, value)));
            }
            assert_eq!(decode(&mut decoder, &block), Ok(sent), "seed {seed}");
        }
    }
}

#[test]
fn what_comes_again_is_one_byte() {
    let (mut encoder, mut block) = (Encoder::default(), Vec::new());
    let (name, value) = (HeaderName::from_static("server"), HeaderValue::from_static("envoy"));
    encoder.header(&mut block, &name, &value);
    assert!(block.len() > 1);
    block.clear();
    encoder.header(&mut block, &name, &value);
    assert_eq!(block, [0x80 | 62]);
    block.clear();
    encoder.header(&mut block, &HeaderName::from_static("authorization"), &value);
    assert_eq!(block[0] & 0xf0, 0x10, "never indexed");
}

#[test]
fn rubbish_is_refused_or_read_within_bounds() {
    let valid = hex("828684418cf1e3c2e5f23a6ba0ab90f4ff5886a8eb10649cbf408825a849e95ba97d7f8925a849e95bb8e8b4bf");
    for seed in 0..5000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut decoder = Decoder::new(4096);
        for _ in 0..4 {
            let mut block = if random.bool() { valid.clone() } else { vec![0; random.usize(..64)] };
            for byte in &mut block {
                if random.u8(..) < 64 {
                    *byte = random.u8(..);
                }
            }
            let result = decode(&mut decoder, &block);
            assert!(decoder.table().1 <= 4096, "seed {seed}");
            if result.is_err() {
                break;
            }
        }
    }
}
