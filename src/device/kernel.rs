//! A dispatch described as data: which kernel, which tensors, which parameters, how many workgroups.

use super::{Caps, Slice};

/// A WGSL file of `shaders/`. It compiles by itself; lines that read `const NAME: type = value;` or `alias NAME = type;` may
/// be given another value per pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shader {
    /// The file's name without `.wgsl`, which is also the op's name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Shader {
    /// The text with each named constant's or alias's value replaced. Every name must be declared in the file as
    /// `const NAME: type = value;` or `alias NAME = type;` at the start of a line; a missing one is a bug that the shader
    /// tests find. A value that names f16 enables it.
    pub fn specialise(&self, constants: &[(&'static str, String)]) -> Result<String, String> {
        let mut lines: Vec<String> = self.text.lines().map(str::to_owned).collect();
        for (name, value) in constants {
            let starts = [format!("const {name}:"), format!("alias {name} ")];
            let line = lines.iter_mut().find(|line| starts.iter().any(|start| line.starts_with(start)));
            let line = line.ok_or_else(|| format!("shaders/{}.wgsl has no `{}` line", self.name, starts[0]))?;
            let (declaration, _) = line.split_once('=').ok_or_else(|| format!("`{line}` has no value"))?;
            *line = format!("{declaration}= {value};");
        }
        const ENABLE: &str = "enable f16;";
        if constants.iter().any(|(_, value)| value.contains("f16")) && !lines.iter().any(|line| line == ENABLE) {
            lines.insert(0, ENABLE.to_owned());
        }
        Ok(lines.join("\n"))
    }
}

/// One storage binding of a dispatch: an input or output of the op, whole or a range of it.
/// Inputs are declared `read` in the shader, outputs `read_write`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bind {
    /// Input `i`.
    In(usize),
    /// Output `i`. An output that takes an input's place (`Op::in_place`) is bound only as the output.
    Out(usize),
    /// `bytes` of input `i` from byte `offset`, which is a multiple of [`super::Slice::ALIGN`].
    InRange(usize, u64, u64),
    /// The same of output `i`.
    OutRange(usize, u64, u64),
}

/// One kernel launch. The uniform block is binding 0 of group 0; `binds` follow as bindings 1, 2, ...
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The WGSL file.
    pub shader: Shader,
    /// Its entry point.
    pub entry: &'static str,
    /// Values for the file's `const` lines.
    pub constants: Vec<(&'static str, String)>,
    /// Storage bindings 1.. in order.
    pub binds: Vec<Bind>,
    /// The uniform block's words; floats as their bits ([`f32::to_bits`]). At most 64.
    pub params: Vec<u32>,
    /// Workgroups in x, y, z.
    pub groups: [u32; 3],
}

/// A dispatch bound to memory.
pub struct Launch {
    /// The dispatch.
    pub dispatch: Dispatch,
    /// The memory behind `dispatch.binds`, in order, and whether the kernel writes it.
    pub bindings: Vec<(Slice, bool)>,
    /// Estimated work: FLOPs + bytes.
    pub work: u64,
}

/// Spreads `count` workgroups over x and y so that neither passes the device's limit. The kernel finds its
/// linear number as `workgroup_id.y * num_workgroups.x + workgroup_id.x` and must return when that is not
/// below the count it was told.
pub fn grid(count: usize, caps: &Caps) -> [u32; 3] {
    let limit = caps.max_workgroups as usize;
    let count = count.max(1);
    let y = count.div_ceil(limit);
    [count.div_ceil(y) as u32, y as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_the_count_within_the_limit() {
        let caps = Caps::webgpu();
        for count in [0, 1, 65_535, 65_536, 200_003, 65_535 * 65_535] {
            let [x, y, z] = grid(count, &caps);
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            assert!(x as usize * y as usize >= count.max(1));
        }
    }

    #[test]
    fn constants_are_replaced_and_missing_ones_reported() {
        let shader = Shader { name: "x", text: "const TILE: u32 = 16u;\nfn f() {}" };
        assert_eq!(shader.specialise(&[("TILE", "8u".into())]).unwrap(), "const TILE: u32 = 8u;\nfn f() {}");
        assert!(shader.specialise(&[("OTHER", "8u".into())]).is_err());
        let shader = Shader { name: "x", text: "alias Strip = f32;\nfn f() {}" };
        let enabled = shader.specialise(&[("Strip", "f16".into())]).unwrap();
        assert_eq!(enabled, "enable f16;\nalias Strip = f16;\nfn f() {}");
    }
}
