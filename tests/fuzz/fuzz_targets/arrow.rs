//! Arrow streams: schema, batches, and the rows of every column.
#![no_main]

use libfuzzer_sys::fuzz_target;
use potstill::formats::Bytes;
use potstill::formats::arrow::Table;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(table) = Table::of(Path::new("fuzz.arrow"), Bytes::Owned(data.to_vec())) else { return };
    for column in table.columns() {
        for depth in [1, 2] {
            let Ok(mut rows) = table.read(&[(column, depth)]) else { continue };
            while let Ok(Some(lists)) = rows.next() {
                for list in lists {
                    for i in 0..list.ends.len() {
                        let range = list.range(i);
                        let _ = (list.numbers.integers(range.clone()), list.numbers.floats(range));
                    }
                }
            }
        }
    }
});
