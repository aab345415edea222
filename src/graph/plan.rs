//! From a graph to a plan: which ops run, and where each tensor lives. A plan is plain data; it can be printed,
//! compared with a snapshot, and its memory is known before anything runs.

use super::{AnyOp, Cost, Graph, Node, Tensor};
use crate::device::{Caps, Dispatch};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// Where a tensor's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Supplied by the caller: index into [`Plan::externals`].
    External(usize),
    /// A piece of scratch memory that several tensors use one after another: index into [`Plan::slots`].
    Slot(usize),
    /// Memory of its own that is read after the replay: index into [`Plan::kept`].
    Kept(usize),
}

/// One op of a plan with the place of each tensor.
pub struct PlannedStep {
    pub(super) op: Arc<dyn AnyOp>,
    pub(super) inputs: Vec<(Tensor, Place)>,
    pub(super) outputs: Vec<(Tensor, Place)>,
    /// Its estimated work.
    pub cost: Cost,
}

/// The ops of a graph that matter for its outputs, in order, with memory assigned by lifetime.
pub struct Plan {
    /// The ops in the order they run.
    pub steps: Vec<PlannedStep>,
    /// Bytes of each scratch slot, largest first.
    pub slots: Vec<u64>,
    /// Bytes of each kept output.
    pub kept: Vec<u64>,
    /// Tensors the caller supplies.
    pub externals: Vec<(String, Tensor)>,
    /// Named outputs.
    pub outputs: BTreeMap<String, (Tensor, Place)>,
}

/// A run of tensors that share memory because each updates the one before in place.
struct Lifetime {
    root: u32,
    first: usize,
    last: usize,
    bytes: u64,
}

impl Plan {
    /// Plans a graph: drops ops nobody reads, finds lifetimes, assigns slots (greedy by size, as in
    /// arXiv:2001.03288).
    pub fn new(graph: &Graph) -> Result<Plan> {
        let roots = memory_roots(graph);
        let root = |t: &Tensor| roots[t.id as usize];
        let live = live_nodes(graph, &roots);
        check_in_place(graph, &live)?;

        let mut places: HashMap<u32, Place> = HashMap::new();
        let mut externals = Vec::new();
        for (name, tensor) in graph.externals() {
            places.insert(tensor.id, Place::External(externals.len()));
            externals.push((name.to_owned(), tensor));
        }
        let mut kept = Vec::new();
        for tensor in graph.outputs.values() {
            places.entry(root(tensor)).or_insert_with(|| {
                kept.push(tensor.bytes());
                Place::Kept(kept.len() - 1)
            });
        }
        let slots = assign_slots(lifetimes(graph, &live, &roots, &places), &mut places);

        let placed = |t: &Tensor| (*t, places[&root(t)]);
        let mut steps = Vec::with_capacity(live.len());
        for &index in &live {
            let node = &graph.nodes[index];
            if let Some(t) = node.inputs.iter().find(|t| !places.contains_key(&root(t))) {
                return Err(Error::internal(format!("`{}` reads {t:?}, which nothing computes", node.op.name())));
            }
            steps.push(PlannedStep {
                op: node.op.clone(),
                inputs: node.inputs.iter().map(placed).collect(),
                outputs: node.outputs.iter().map(placed).collect(),
                cost: node.op.cost(&node.node()),
            });
        }
        let outputs = graph.outputs.iter().map(|(name, t)| (name.clone(), placed(t))).collect();
        Ok(Plan { steps, slots, kept, externals, outputs })
    }

    /// Bytes of scratch and kept memory, which the plan allocates itself.
    pub fn own_bytes(&self) -> u64 {
        self.slots.iter().chain(&self.kept).sum()
    }

    /// Bytes of each slot of a scratch pool that all of these plans can use in turn.
    pub fn shared_slots(plans: &[&Plan]) -> Vec<u64> {
        let slots = plans.iter().map(|plan| plan.slots.len()).max().unwrap_or(0);
        let largest = |i: usize| plans.iter().filter_map(|plan| plan.slots.get(i)).max().copied().unwrap_or(0);
        (0..slots).map(largest).collect()
    }

    /// Floating-point operations of one replay.
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|s| s.cost.flops).sum()
    }

    /// The largest tensor of the plan, in bytes, with the name of an op that touches it.
    pub fn largest_tensor(&self) -> Option<(u64, &'static str)> {
        let of = |step: &'_ PlannedStep| {
            let name = step.op.name();
            step.inputs.iter().chain(&step.outputs).map(|(t, _)| (t.bytes(), name)).max()
        };
        self.steps.iter().filter_map(of).max()
    }

    /// Every dispatch under the given limits, in order.
    pub fn dispatches(&self, caps: &Caps) -> Result<Vec<Dispatch>> {
        let of = |step: &PlannedStep| step.with_node(|node| step.op.dispatches(node, caps));
        Ok(self.steps.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

/// Tensor id -> id of the tensor whose memory it lives in (itself unless it was updated in place).
fn memory_roots(graph: &Graph) -> Vec<u32> {
    let mut roots: Vec<u32> = (0..graph.tensors.len() as u32).collect();
    for node in &graph.nodes {
        for (output, input) in node.op.in_place() {
            roots[node.outputs[output].id as usize] = roots[node.inputs[input].id as usize];
        }
    }
    roots
}

/// Indices of the nodes that lead to an output or change memory of the caller's.
fn live_nodes(graph: &Graph, roots: &[u32]) -> Vec<usize> {
    let mut wanted = vec![false; graph.tensors.len()];
    for tensor in graph.outputs.values() {
        wanted[tensor.id as usize] = true;
    }
    let changes_external = |t: &Tensor| graph.tensors[roots[t.id as usize] as usize].external.is_some();
    let mut live = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|t| wanted[t.id as usize] || changes_external(t)) {
            node.inputs.iter().for_each(|t| wanted[t.id as usize] = true);
            live.push(index);
        }
    }
    live.reverse();
    live
}

/// No op may read a tensor after another op has updated it in place.
fn check_in_place(graph: &Graph, live: &[usize]) -> Result<()> {
    let mut overwritten: HashMap<u32, &'static str> = HashMap::new();
    for &index in live {
        let node = &graph.nodes[index];
        for tensor in &node.inputs {
            if let Some(by) = overwritten.get(&tensor.id) {
                let reader = node.op.name();
                return Err(Error::internal(format!("`{reader}` reads {tensor:?} after `{by}` updated it in place")));
            }
        }
        for (_, input) in node.op.in_place() {
            overwritten.insert(node.inputs[input].id, node.op.name());
        }
    }
    Ok(())
}

/// First and last step of every memory root that has no place yet.
fn lifetimes(graph: &Graph, live: &[usize], roots: &[u32], places: &HashMap<u32, Place>) -> Vec<Lifetime> {
    let mut found: BTreeMap<u32, Lifetime> = BTreeMap::new();
    for (step, &index) in live.iter().enumerate() {
        let node = &graph.nodes[index];
        for tensor in node.outputs.iter().chain(&node.inputs) {
            let root = roots[tensor.id as usize];
            if !places.contains_key(&root) {
                let life = Lifetime { root, first: step, last: step, bytes: tensor.bytes() };
                found.entry(root).or_insert(life).last = step;
            }
        }
    }
    found.into_values().collect()
}

/// Gives each lifetime the first slot that is free for all of it, largest tensors first.
fn assign_slots(mut lives: Vec<Lifetime>, places: &mut HashMap<u32, Place>) -> Vec<u64> {
    lives.sort_by_key(|life| (std::cmp::Reverse(life.bytes), life.first));
    let mut slots: Vec<(u64, Vec<(usize, usize)>)> = Vec::new();
    for life in lives {
        let free = |taken: &[(usize, usize)]| taken.iter().all(|&(a, b)| life.last < a || b < life.first);
        let slot = slots.iter().position(|(_, taken)| free(taken)).unwrap_or_else(|| {
            slots.push((life.bytes, Vec::new()));
            slots.len() - 1
        });
        slots[slot].1.push((life.first, life.last));
        places.insert(life.root, Place::Slot(slot));
    }
    slots.into_iter().map(|(bytes, _)| bytes).collect()
}

impl PlannedStep {
    /// Runs `f` with the step's tensors.
    pub(super) fn with_node<T>(&self, f: impl FnOnce(&Node<'_>) -> T) -> T {
        let inputs: Vec<_> = self.inputs.iter().map(|(t, _)| *t).collect();
        let outputs: Vec<_> = self.outputs.iter().map(|(t, _)| *t).collect();
        f(&Node { inputs: &inputs, outputs: &outputs })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::External(i) => write!(f, "e{i}"),
            Place::Slot(i) => write!(f, "s{i}"),
            Place::Kept(i) => write!(f, "k{i}"),
        }
    }
}

/// One line an op: name, what it reads and writes (place and shape), FLOPs and bytes; then the memory.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |tensors: &[(Tensor, Place)]| {
            let one = |(t, place): &(Tensor, Place)| format!("{place}{:?}", t.shape);
            tensors.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        for (i, step) in self.steps.iter().enumerate() {
            let Cost { flops, bytes } = step.cost;
            let (inputs, outputs) = (list(&step.inputs), list(&step.outputs));
            writeln!(f, "{i:4} {:<20} {inputs} -> {outputs}  {flops} flop {bytes} B", step.op.name())?;
        }
        writeln!(f, "slots {:?}", self.slots)?;
        writeln!(f, "kept {:?}", self.kept)?;
        writeln!(f, "own memory {} B, {} flop", self.own_bytes(), self.flops())
    }
}
