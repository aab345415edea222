//! Matrix products of f32 matrices whose factors are rounded to bfloat16 on the way, on processors with AVX512-BF16
//! (AMD since Zen 4, Intel since Cooper Lake): more than twice the speed of f32. Sums are kept in f32.
//!
//! The blocking is that of Goto & van de Geijn (2008): a block of B is packed into panels of [`COLUMNS`] columns and a
//! block of A into panels of [`ROWS`] rows, both as pairs of neighbours along k, which is what the instruction multiplies;
//! then every pair of panels gives one tile of C, held in registers. Rounding happens while packing, to the nearest, ties
//! to even. Numbers below f32's normal range count as zero, as the instruction does.

use super::gemm::Layout;

/// Whether this processor has the instructions.
pub fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// C = A * B, or C += A * B if `accumulate`, as [`super::gemm::gemm`] does it, with rounded factors. Rows of C are
/// contiguous. Panics where the processor does not support it ([`supported`]), or if a matrix reaches past its slice.
#[allow(clippy::too_many_arguments)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub fn gemm(
    (m, k, n): (usize, usize, usize),
    c: &mut [f32],
    lc: Layout,
    accumulate: bool,
    a: &[f32],
    la: Layout,
    b: &[f32],
    lb: Layout,
    parallel: bool,
) {
    assert!(supported(), "this processor has no bfloat16 products");
    assert!(lc.fits(m, n, c.len()) && la.fits(m, k, a.len()) && lb.fits(k, n, b.len()), "matrix past its slice");
    assert!(
        lc.col == 1 && (la.row == 1 || la.col == 1) && (lb.row == 1 || lb.col == 1),
        "a matrix without unit stride"
    );
    #[cfg(target_arch = "x86_64")]
    blocked::product((m, k, n), c, lc, accumulate, a, la, b, lb, parallel);
}

#[cfg(target_arch = "x86_64")]
mod blocked {
    use super::Layout;
    use crate::platform::parallel::*;
    use std::arch::x86_64::*;
    use std::ops::Range;
    use std::sync::Mutex;

    /// Columns of a panel of B: three vectors.
    const COLUMNS: usize = 3 * LANES;
    /// Rows of a panel of A. With three vectors each they fill 24 of the 32 registers.
    const ROWS: usize = 8;
    const LANES: usize = 16;
    const HALF: usize = LANES / 2;
    /// Lanes that are packed together: whole panels of either factor.
    const GROUP: usize = 2 * COLUMNS;
    /// Extent of a block along k, in pairs: a panel of A stays in the first cache, one of B in the second.
    const PAIRS: usize = 384;
    /// Panels of B in a block: 4.5 MiB, in the last cache.
    const WIDTH: usize = 64;
    /// Panels of A in a block: 3 MiB.
    const HEIGHT: usize = 256;
    /// Panels of A that a thread takes at a time.
    const SHARE: usize = 8;

    /// Packed blocks of earlier products, to be used again: a steady state allocates nothing.
    static SPARE: Mutex<Vec<Vec<u32>>> = Mutex::new(Vec::new());

    /// A block's memory, given back when dropped.
    struct Block(Vec<u32>);

    impl Block {
        fn take(words: usize) -> Block {
            let spare = SPARE.lock().ok().and_then(|mut spare| spare.pop());
            let mut block = spare.unwrap_or_default();
            if block.len() < words {
                block.resize(words, 0);
            }
            Block(block)
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            if let Ok(mut spare) = SPARE.lock() {
                spare.push(std::mem::take(&mut self.0));
            }
        }
    }

    /// Where a tile of C goes. Threads write different tiles.
    #[derive(Clone, Copy)]
    struct Target {
        c: *mut f32,
        stride: usize,
    }

    // SAFETY: every tile is written by one thread alone.
    unsafe impl Send for Target {}
    unsafe impl Sync for Target {}

    /// One factor, seen as `lanes` vectors along k: lanes are A's rows or B's columns.
    #[derive(Clone, Copy)]
    struct Factor<'a> {
        data: &'a [f32],
        offset: usize,
        lane: usize,
        k: usize,
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn product(
        (m, k, n): (usize, usize, usize),
        c: &mut [f32],
        lc: Layout,
        accumulate: bool,
        a: &[f32],
        la: Layout,
        b: &[f32],
        lb: Layout,
        parallel: bool,
    ) {
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 && !accumulate {
            (0..m).for_each(|i| c[lc.offset + i * lc.row..][..n].fill(0.0));
        }
        let a = Factor { data: a, offset: la.offset, lane: la.row, k: la.col };
        let b = Factor { data: b, offset: lb.offset, lane: lb.col, k: lb.row };
        let pairs = k.div_ceil(2);
        // Blocks of nearly the same extent rather than a thin last one.
        let deep = pairs.div_ceil(pairs.div_ceil(PAIRS).max(1));
        let (wide, high) = (n.div_ceil(COLUMNS).min(WIDTH), m.div_ceil(ROWS).min(HEIGHT));
        let mut block_b = Block::take(wide * COLUMNS * deep);
        let mut block_a = Block::take(high * ROWS * deep);
        for n0 in (0..n).step_by(WIDTH * COLUMNS) {
            let n1 = n.min(n0 + WIDTH * COLUMNS);
            for k0 in (0..k).step_by((2 * deep).max(1)) {
                let k1 = k.min(k0 + 2 * deep);
                pack::<COLUMNS>(&mut block_b.0, b, n0..n1, k0..k1, parallel);
                for m0 in (0..m).step_by(HEIGHT * ROWS) {
                    let m1 = m.min(m0 + HEIGHT * ROWS);
                    pack::<ROWS>(&mut block_a.0, a, m0..m1, k0..k1, parallel);
                    // SAFETY: `lc.fits` was asserted; rows m0..m1 and columns n0..n1 are inside the matrix.
                    let c = unsafe { c.as_mut_ptr().add(lc.offset + m0 * lc.row + n0) };
                    let target = Target { c, stride: lc.row };
                    let size = (m1 - m0, (k1 - k0).div_ceil(2), n1 - n0);
                    tiles(size, target, accumulate || k0 > 0, &block_a.0, &block_b.0, parallel);
                }
            }
        }
    }

    /// Every tile of a block of C.
    fn tiles((m, pairs, n): (usize, usize, usize), c: Target, add: bool, a: &[u32], b: &[u32], parallel: bool) {
        let share = |share: usize| {
            let c = &c;
            let rows = share * SHARE * ROWS..m.min((share + 1) * SHARE * ROWS);
            for (j, b) in (0..n).step_by(COLUMNS).zip(b.chunks(pairs * COLUMNS)) {
                for i in rows.clone().step_by(ROWS) {
                    let a = &a[i * pairs..][..ROWS * pairs];
                    let size = (ROWS.min(m - i), COLUMNS.min(n - j));
                    // SAFETY: the tile lies inside C and is this thread's alone; the panels hold `pairs` pairs a lane;
                    // `supported` was asserted.
                    unsafe { tile(pairs, a.as_ptr(), b.as_ptr(), c.c.add(i * c.stride + j), c.stride, size, add) };
                }
            }
        };
        let shares = m.div_ceil(SHARE * ROWS);
        if parallel && shares > 1 { (0..shares).into_par_iter().for_each(share) } else { (0..shares).for_each(share) }
    }

    /// Packs lanes `lanes` and elements `k` of a factor into panels of `W` lanes: pair p of lane l of a panel is its
    /// word p * W + l. What is missing of the last panel and the last pair is zero.
    fn pack<const W: usize>(block: &mut [u32], from: Factor<'_>, lanes: Range<usize>, k: Range<usize>, parallel: bool) {
        let pairs = k.len().div_ceil(2);
        let block = &mut block[..lanes.len().div_ceil(W) * W * pairs];
        let one = |(group, panels): (usize, &mut [u32])| {
            let first = lanes.start + group * GROUP;
            let count = GROUP.min(lanes.end - first);
            let data = &from.data[from.offset + first * from.lane + k.start * from.k..];
            // SAFETY: `supported` was asserted by the caller.
            unsafe {
                if from.k == 1 {
                    lanes_along_k::<W>(panels, data, from.lane, count, k.len());
                } else {
                    lanes_side_by_side::<W>(panels, data, from.k, count, k.len());
                }
            }
        };
        let groups = block.chunks_mut((GROUP * pairs).max(1));
        if parallel && lanes.len() * k.len() > 1 << 15 {
            groups.collect::<Vec<_>>().into_par_iter().enumerate().for_each(one);
        } else {
            groups.enumerate().for_each(one);
        }
    }

    /// Two numbers rounded to bfloat16, the first in the low half.
    fn pair(low: f32, high: f32) -> u32 {
        let bits = |x: f32| u32::from(half::bf16::from_f32(x).to_bits());
        bits(low) | bits(high) << 16
    }

    /// Panels of `count` lanes that are contiguous along k and `stride` apart: squares of 16 lanes by 16 pairs, turned in
    /// registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn lanes_along_k<const W: usize>(panels: &mut [u32], data: &[f32], stride: usize, count: usize, k: usize) {
        let pairs = k.div_ceil(2);
        let kept = ((1u32 << W.min(LANES)) - 1) as __mmask16;
        for (number, panel) in panels.chunks_exact_mut(W * pairs).enumerate() {
            for first in (0..W).step_by(LANES) {
                for p0 in (0..pairs).step_by(LANES) {
                    let mut square = [_mm512_setzero_si512(); LANES];
                    for (i, row) in square.iter_mut().enumerate().take(W.min(LANES)) {
                        let lane = number * W + first + i;
                        if lane < count {
                            *row = sixteen_pairs(&data[lane * stride..][..k][2 * p0..]);
                        }
                    }
                    transpose(&mut square);
                    for (p, column) in (p0..pairs).zip(square) {
                        let to = &mut panel[p * W + first..][..W.min(LANES)];
                        // SAFETY: as many words as the mask has bits are written.
                        unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), kept, column) };
                    }
                }
            }
        }
    }

    /// The first 32 numbers of a row, rounded; zeros behind its end.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn sixteen_pairs(row: &[f32]) -> __m512i {
        let mask = |from: usize| {
            let left = row.len().saturating_sub(from).min(LANES);
            ((1u32 << left) - 1) as __mmask16
        };
        // SAFETY: the masks leave out what is behind the row's end; the types have one layout.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask(0), row.as_ptr());
            let high = _mm512_maskz_loadu_ps(mask(LANES), row.as_ptr().wrapping_add(LANES));
            std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    /// Swaps rows and columns of 16 x 16 words.
    #[target_feature(enable = "avx512f")]
    fn transpose(square: &mut [__m512i; LANES]) {
        let mut other = [_mm512_setzero_si512(); LANES];
        // Within groups of four words: pairs of rows, then pairs of pairs.
        for i in (0..LANES).step_by(2) {
            other[i] = _mm512_unpacklo_epi32(square[i], square[i + 1]);
            other[i + 1] = _mm512_unpackhi_epi32(square[i], square[i + 1]);
        }
        for i in (0..LANES).step_by(4) {
            square[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
            square[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
            square[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
            square[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
        }
        // Whole groups: those of rows 0 and 4, of 8 and 12, then all four.
        for i in 0..4 {
            other[i] = _mm512_shuffle_i32x4::<0x88>(square[i], square[i + 4]);
            other[i + 4] = _mm512_shuffle_i32x4::<0xdd>(square[i], square[i + 4]);
            other[i + 8] = _mm512_shuffle_i32x4::<0x88>(square[i + 8], square[i + 12]);
            other[i + 12] = _mm512_shuffle_i32x4::<0xdd>(square[i + 8], square[i + 12]);
        }
        for i in 0..4 {
            square[i] = _mm512_shuffle_i32x4::<0x88>(other[i], other[i + 8]);
            square[i + 8] = _mm512_shuffle_i32x4::<0xdd>(other[i], other[i + 8]);
            square[i + 4] = _mm512_shuffle_i32x4::<0x88>(other[i + 4], other[i + 12]);
            square[i + 12] = _mm512_shuffle_i32x4::<0xdd>(other[i + 4], other[i + 12]);
        }
    }

    /// Panels of `count` lanes that are neighbours in memory; a lane's elements are `stride` apart. All panels grow
    /// together, so that memory is read in long runs.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn lanes_side_by_side<const W: usize>(panels: &mut [u32], data: &[f32], stride: usize, count: usize, k: usize) {
        let pairs = k.div_ceil(2);
        for p in 0..pairs {
            let low = &data[2 * p * stride..][..count];
            let high = (2 * p + 1 < k).then(|| &data[(2 * p + 1) * stride..][..count]);
            for first in (0..panels.len() / pairs).step_by(HALF) {
                let to = &mut panels[first / W * W * pairs + p * W + first % W..][..HALF];
                match high.filter(|_| first + HALF <= count) {
                    // SAFETY: both rows have 8 numbers from `first` on, `to` has 8 words.
                    Some(high) => unsafe {
                        let bits = |row: &[f32]| -> __m256i {
                            let row = _mm256_loadu_ps(row[first..].as_ptr());
                            _mm256_cvtepu16_epi32(std::mem::transmute::<__m128bh, __m128i>(_mm256_cvtneps_pbh(row)))
                        };
                        let both = _mm256_or_si256(bits(low), _mm256_slli_epi32::<16>(bits(high)));
                        _mm256_storeu_si256(to.as_mut_ptr().cast(), both);
                    },
                    None => {
                        let at = |row: &[f32], lane: usize| row.get(lane).copied().unwrap_or(0.0);
                        for (lane, to) in (first..).zip(to) {
                            *to = pair(at(low, lane), high.map_or(0.0, |high| at(high, lane)));
                        }
                    }
                }
            }
        }
    }

    /// C's tile of `size` rows and columns = (or +=) the product of two panels.
    ///
    /// # Safety
    /// `a` holds `pairs * ROWS` words and `b` `pairs * COLUMNS`; `c` may be written where `size` says, `stride` apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile(
        pairs: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        stride: usize,
        (rows, columns): (usize, usize),
        add: bool,
    ) {
        // SAFETY: all reads are inside the panels; writes are masked to `columns` and stop at `rows`.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 3]; ROWS];
            for p in 0..pairs {
                let b = b.add(p * COLUMNS);
                let y: [__m512bh; 3] =
                    std::array::from_fn(|v| std::mem::transmute(_mm512_loadu_si512(b.add(v * LANES).cast())));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(p * ROWS + i) as i32));
                    for (sum, y) in sums.iter_mut().zip(y) {
                        *sum = _mm512_dpbf16_ps(*sum, x, y);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate().take(rows) {
                for (v, &sum) in sums.iter().enumerate() {
                    let left = columns.saturating_sub(v * LANES).min(LANES);
                    let mask = ((1u32 << left) - 1) as __mmask16;
                    let to = c.add(i * stride + v * LANES);
                    let sum = if add { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, to)) } else { sum };
                    _mm512_mask_storeu_ps(to, mask, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Element (i, j) of a matrix in a slice, rounded as the product rounds it.
    fn rounded(data: &[f32], layout: Layout, i: usize, j: usize) -> f64 {
        f64::from(half::bf16::from_f32(data[layout.offset + i * layout.row + j * layout.col]).to_f32())
    }

    fn random(len: usize, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64::new(seed);
        (0..len).map(|_| random.uniform() as f32 * 2.0 - 1.0).collect()
    }

    #[test]
    fn products_of_rounded_factors_in_every_layout_and_awkward_size() {
        if !supported() {
            return;
        }
        let sizes = [
            (1, 1, 1),
            (7, 3, 47),
            (8, 2, 48),
            (9, 31, 49),
            (17, 1537, 97),
            (130, 65, 33),
            (2049, 5, 3),
            (3, 40, 3100),
        ];
        for (m, k, n) in sizes {
            for transposed in 0..4 {
                let (la, a_len) = match transposed & 1 {
                    0 => (Layout { offset: 3, row: k + 2, col: 1 }, 3 + m * (k + 2)),
                    _ => (Layout { offset: 1, row: 1, col: m + 1 }, 1 + k * (m + 1)),
                };
                let (lb, b_len) = match transposed & 2 {
                    0 => (Layout { offset: 0, row: n, col: 1 }, k * n),
                    _ => (Layout { offset: 5, row: 1, col: k + 3 }, 5 + n * (k + 3)),
                };
                let (a, b) = (random(a_len, 1), random(b_len, 2));
                let lc = Layout { offset: 2, row: n + 1, col: 1 };
                for (accumulate, parallel) in [(false, true), (true, false)] {
                    let before = random(2 + m * (n + 1), 3);
                    let mut c = before.clone();
                    gemm((m, k, n), &mut c, lc, accumulate, &a, la, &b, lb, parallel);
                    for i in 0..m {
                        for j in 0..n {
                            let at = lc.offset + i * lc.row + j;
                            let old = if accumulate { f64::from(before[at]) } else { 0.0 };
                            let exact =
                                (0..k).map(|l| rounded(&a, la, i, l) * rounded(&b, lb, l, j)).sum::<f64>() + old;
                            // f32 sums of k products below 1, each off by half an ulp of the sum so far.
                            let bound = 1e-7 * (k as f64 + 2.0);
                            let off = (f64::from(c[at]) - exact).abs();
                            assert!(off <= bound, "{m}x{k}x{n} {transposed} ({i}, {j}): {} {exact}", c[at]);
                        }
                    }
                    // Nothing outside C is touched.
                    assert!(
                        c[..2] == before[..2] && (0..m).all(|i| c[2 + i * (n + 1) + n] == before[2 + i * (n + 1) + n])
                    );
                }
            }
        }
    }

    #[test]
    fn nothing_to_sum_is_zero_and_nan_stays() {
        if !supported() {
            return;
        }
        let flat = |row| Layout { offset: 0, row, col: 1 };
        let mut c = [7.0; 4];
        gemm((2, 0, 2), &mut c, flat(2), false, &[], flat(1), &[], flat(2), true);
        assert_eq!(c, [0.0; 4]);
        gemm((1, 1, 2), &mut c, flat(2), false, &[f32::NAN], flat(1), &[1.0, 2.0], flat(2), true);
        assert!(c[0].is_nan() && c[1].is_nan());
    }

    #[test]
    #[ignore = "a measurement: cargo test --release --lib device::bf16 -- --ignored --nocapture"]
    fn speed() {
        use crate::device::gemm as single;
        for (what, m, k, n, at, bt) in [
            ("forward", 512, 576, 1536, false, true),
            ("head", 512, 576, 49152, false, true),
            ("input gradient", 512, 1536, 576, false, false),
            ("head's input gradient", 512, 49152, 576, false, false),
            ("weight gradient", 1536, 512, 576, true, false),
            ("head's weight gradient", 49152, 512, 576, true, false),
        ] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let straight = |row| Layout { offset: 0, row, col: 1 };
            let turned = |col| Layout { offset: 0, row: 1, col };
            let (la, lb) = (if at { turned(m) } else { straight(k) }, if bt { turned(k) } else { straight(n) });
            let mut c = vec![0.0; m * n];
            let mut time = |f: &mut dyn FnMut(&mut [f32])| {
                let repeats = (4_000_000_000 / (2 * m * k * n)).max(2);
                f(&mut c);
                let mut times: Vec<f64> = (0..repeats)
                    .map(|_| {
                        let start = std::time::Instant::now();
                        f(&mut c);
                        start.elapsed().as_secs_f64()
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                (2 * m * k * n) as f64 / times[times.len() / 4] / 1e9
            };
            let ours = time(&mut |c| gemm((m, k, n), c, straight(n), false, &a, la, &b, lb, true));
            let f32s = time(&mut |c| single::gemm((m, k, n), c, straight(n), false, &a, la, &b, lb, true));
            println!("{what} {m}x{k}x{n}: {ours:.0} GFLOP/s, f32 {f32s:.0}");
        }
    }
}
