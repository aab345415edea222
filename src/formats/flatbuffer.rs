//! Reading single fields of a flatbuffer (the encoding of Arrow's messages) without trust: what is absent, or lies outside
//! the bytes, is `None`.

/// A table.
#[derive(Clone, Copy)]
pub(super) struct Flat<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// `N` bytes from `at` on.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

impl<'a> Flat<'a> {
    /// The table that the buffer is about.
    pub fn root(bytes: &'a [u8]) -> Option<Flat<'a>> {
        Some(Flat { bytes, at: u32_at(bytes, 0)? as usize })
    }

    /// Where field number `field` is stored, which the table's vtable tells.
    fn slot(&self, field: usize) -> Option<usize> {
        let back = i32::from_le_bytes(array(self.bytes, self.at)?);
        let vtable = usize::try_from(i64::try_from(self.at).ok()?.checked_sub(i64::from(back))?).ok()?;
        let u16_at = |at: usize| array(self.bytes, at).map(u16::from_le_bytes).map(usize::from);
        let entry = 4 + 2 * field;
        if entry + 2 > u16_at(vtable)? {
            return None;
        }
        match u16_at(vtable.checked_add(entry)?)? {
            0 => None,
            offset => self.at.checked_add(offset),
        }
    }

    fn scalar<const N: usize>(&self, field: usize) -> Option<[u8; N]> {
        array(self.bytes, self.slot(field)?)
    }

    pub fn u8(&self, field: usize) -> Option<u8> {
        self.scalar(field).map(u8::from_le_bytes)
    }

    pub fn i16(&self, field: usize) -> Option<i16> {
        self.scalar(field).map(i16::from_le_bytes)
    }

    pub fn i32(&self, field: usize) -> Option<i32> {
        self.scalar(field).map(i32::from_le_bytes)
    }

    pub fn i64(&self, field: usize) -> Option<i64> {
        self.scalar(field).map(i64::from_le_bytes)
    }

    /// Where the offset stored at `at` leads.
    fn follow(&self, at: usize) -> Option<usize> {
        at.checked_add(u32_at(self.bytes, at)? as usize)
    }

    pub fn table(&self, field: usize) -> Option<Flat<'a>> {
        Some(Flat { bytes: self.bytes, at: self.follow(self.slot(field)?)? })
    }

    /// A vector's items of `size` bytes each, and where they begin.
    fn vector(&self, field: usize, size: usize) -> Option<(usize, &'a [u8])> {
        let at = self.follow(self.slot(field)?)?;
        let start = at.checked_add(4)?;
        let bytes = (u32_at(self.bytes, at)? as usize).checked_mul(size)?;
        Some((start, self.bytes.get(start..start.checked_add(bytes)?)?))
    }

    pub fn text(&self, field: usize) -> Option<&'a str> {
        std::str::from_utf8(self.vector(field, 1)?.1).ok()
    }

    pub fn tables(&self, field: usize) -> Option<Vec<Flat<'a>>> {
        let (start, items) = self.vector(field, 4)?;
        let table = |i: usize| Some(Flat { bytes: self.bytes, at: self.follow(start + 4 * i)? });
        (0..items.len() / 4).map(table).collect()
    }

    /// A vector of structs of two 64-bit numbers that are not negative.
    pub fn pairs(&self, field: usize) -> Option<Vec<[usize; 2]>> {
        let (_, items) = self.vector(field, 16)?;
        let number = |item: &[u8], at: usize| usize::try_from(i64::from_le_bytes(array(item, at)?)).ok();
        items.chunks_exact(16).map(|item| Some([number(item, 0)?, number(item, 8)?])).collect()
    }
}
