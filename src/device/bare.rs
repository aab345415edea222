//! WGSL without its comments: for a browser's module, which they would make larger by a hundredth.

/// `text` without comments, without spaces that end a line, and with one space for an indentation. Lines stay where
/// they are, so that a compiler's messages name those of the file. `N` is [`len`] of it.
pub(crate) const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    copy(text.as_bytes(), &mut out);
    out
}

/// How many bytes are left of `text`.
pub(crate) const fn len(text: &str) -> usize {
    copy(text.as_bytes(), &mut [])
}

/// The text that [`bytes`] left. It is UTF-8, because whole characters were taken out.
pub(crate) const fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("half a character"),
    }
}

/// Copies what is kept, as far as it fits, and counts all of it.
const fn copy(text: &[u8], out: &mut [u8]) -> usize {
    let (mut read, mut kept) = (0, 0);
    while read < text.len() {
        let mut spaces = read;
        while spaces < text.len() && text[spaces] == b' ' {
            spaces += 1;
        }
        let line_ends = spaces == text.len() || text[spaces] == b'\n' || starts_comment(text, spaces);
        if line_ends {
            read = spaces;
            while read < text.len() && text[read] != b'\n' {
                read += 1;
            }
            if read == text.len() {
                break;
            }
        } else if spaces > read {
            read = spaces - 1;
        }
        if kept < out.len() {
            out[kept] = text[read];
        }
        kept += 1;
        read += 1;
    }
    kept
}

const fn starts_comment(text: &[u8], at: usize) -> bool {
    at + 1 < text.len() && text[at] == b'/' && text[at + 1] == b'/'
}

#[cfg(test)]
mod tests {
    #[test]
    fn comments_go_and_lines_stay() {
        const TEXT: &str = "// é\nconst A: u32 = 4u;  // four\n\n    let x = a  / b; //\n  // c\n}\n//";
        const BARE: &str = super::text(&super::bytes::<{ super::len(TEXT) }>(TEXT));
        assert_eq!(BARE, "\nconst A: u32 = 4u;\n\n let x = a / b;\n\n}\n");
    }

    #[test]
    fn every_shader_keeps_its_code() {
        for shader in crate::ops::shaders() {
            let code = |text: &str| -> Vec<Vec<String>> {
                let bare =
                    |line: &str| line.split("//").next().unwrap_or("").split_whitespace().map(str::to_owned).collect();
                text.lines().map(bare).collect()
            };
            let mut out = vec![0; super::len(shader.text)];
            assert_eq!(super::copy(shader.text.as_bytes(), &mut out), out.len());
            assert_eq!(code(super::text(&out)), code(shader.text), "{}", shader.name);
            assert!(!super::text(&out).contains("//"), "{}", shader.name);
        }
    }
}
