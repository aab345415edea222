//! How vocabularies spell bytes of text.

use serde_json::Value;
use std::collections::HashMap;

/// What a tokenizer's decoder makes of a token.
#[derive(Clone, Debug)]
pub(super) struct Spelling {
    /// The byte of each character, where each byte is written as one.
    alphabet: Option<HashMap<char, u8>>,
    /// `<0x41>` is a byte.
    byte_fallback: bool,
    /// U+2581 is a space.
    underscore: bool,
}

impl Spelling {
    /// From the `decoder` of a tokenizer.json.
    pub fn of(decoder: &Value) -> Spelling {
        let decoder = decoder.to_string();
        Spelling {
            alphabet: decoder.contains("\"ByteLevel\"").then(alphabet),
            byte_fallback: decoder.contains("\"ByteFallback\""),
            underscore: decoder.contains('\u{2581}'),
        }
    }

    /// The bytes of text that a token stands for.
    pub fn bytes(&self, token: &str) -> Vec<u8> {
        if let Some(alphabet) = &self.alphabet {
            // A token with a character that spells no byte was added as it is.
            let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|d| d.len() == 2);
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if self.byte_fallback => vec![byte],
            _ if self.underscore => token.replace('\u{2581}', " ").into_bytes(),
            _ => token.as_bytes().to_vec(),
        }
    }
}

/// GPT-2's characters for bytes: printable ones of Latin-1 stand for themselves, the others for those from 256 on.
fn alphabet() -> HashMap<char, u8> {
    let mut next = 256;
    let mut character = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
        _ => {
            next += 1;
            (char::from_u32(next - 1).unwrap_or_default(), byte)
        }
    };
    (0..=255).map(&mut character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn every_spelling_gives_the_bytes_of_the_text() {
        let level = Spelling::of(&json!({ "type": "ByteLevel" }));
        assert_eq!(level.bytes("\u{120}the"), b" the");
        assert_eq!(level.bytes("\u{10a}"), b"\n");
        assert_eq!(level.bytes("\u{c3}\u{a9}"), "\u{e9}".as_bytes());
        assert_eq!(level.bytes("\u{4e2d}"), "\u{4e2d}".as_bytes());
        let all: std::collections::BTreeSet<char> = alphabet().into_keys().collect();
        assert_eq!(all, ByteLevel::alphabet().into_iter().collect());
        let piece = Spelling::of(&json!([{ "type": "Replace", "content": " ", "pattern": "\u{2581}" },
                                         { "type": "ByteFallback" }]));
        assert_eq!((piece.bytes("\u{2581}the"), piece.bytes("<0x0A>")), (b" the".to_vec(), vec![10]));
        assert_eq!(piece.bytes("<0xzz>"), b"<0xzz>");
    }
}
