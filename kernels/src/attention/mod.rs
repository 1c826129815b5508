//! Fused attention. From a public call to the loop nest: [`fused`] plans, spreads the items over
//! threads, and [`pass`] takes an item's tiles through the key blocks.

mod ahead;
pub(crate) mod current;
mod outputs;
pub(crate) mod pairs;
pub(crate) mod pass;
mod split_kv;
pub(crate) mod tile;

use crate::Settings;
use crate::error::Result;
use crate::executor::{Crew, Executor, for_each_tile};
use crate::microkernel::terms::{Chosen, Plain, Scoring};
use crate::outputs::Outputs;
use crate::plan::{MAX_TILES, Plan};
use crate::problem::Problem;
use crate::simd::{Isa, Kernel, Simd, dispatch};
use crate::term::{NoTerm, ScoreTerm};
use crate::workspace::{Entry, Line, Workspace};
use pass::{Item, Job};
use split_kv::{SplitKv, local};

/// Attention without a score matrix: time of the two products, memory of a few tiles a thread.
pub(crate) fn fused(
    problem: &Problem<'_, f32>,
    outputs: &Outputs<'_, f32>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let isa = settings.isa()?;
    let (planned, scratch) = planned(problem, term_floats(problem), settings, workspace)?;
    fused_planned(problem, outputs, planned, (isa, settings.executor), scratch)?;
    Ok(isa)
}

/// The same with a term of the caller's.
pub(crate) fn fused_with<U: ScoreTerm>(
    problem: &Problem<'_, f32>,
    term: &U,
    outputs: &Outputs<'_, f32>,
    settings: &Settings<'_>,
    workspace: &mut Workspace,
) -> Result<Isa> {
    let isa = settings.isa()?;
    let tile = <Chosen<'_, U>>::TILE;
    let ((plan, table), scratch) = planned(problem, tile, settings, workspace)?;
    let job = Job::new(problem, Chosen::new(problem, term), outputs, plan);
    let crew = Crew { executor: settings.executor, threads: plan.threads };
    dispatch(isa, Drive { job, crew, table, scratch })?;
    Ok(isa)
}

/// A plan with its filled table, and the scratch that it needs.
type Planned<'w> = ((Plan, &'w [Entry]), &'w mut [f32]);

/// The plan of a problem whose terms have so many floats a tile.
fn planned<'w>(
    problem: &Problem<'_, f32>,
    term_floats: usize,
    settings: &Settings<'_>,
    workspace: &'w mut Workspace,
) -> Result<Planned<'w>> {
    let plan = Plan::new(problem, settings.threads_for(Plan::work(problem)), term_floats);
    let (scratch, table) = workspace.scratch_and_table(plan.lines(), plan.entries())?;
    plan.tabulate(problem, table);
    Ok(((plan, table), scratch))
}

/// The floats that a tile's rows carry along for the terms of a problem.
pub(crate) fn term_floats<T: crate::Element>(problem: &Problem<'_, T>) -> usize {
    if problem.has_natural_scores() { <Chosen<'_, NoTerm>>::TILE } else { Plain::TILE }
}

/// [`fused`] by a plan that is made, and its filled table, with as much scratch as the plan says.
pub(crate) fn fused_planned(
    problem: &Problem<'_, f32>,
    outputs: &Outputs<'_, f32>,
    (plan, table): (Plan, &[Entry]),
    (isa, executor): (Isa, &dyn Executor),
    scratch: &mut [f32],
) -> Result<()> {
    let crew = Crew { executor, threads: plan.threads };
    if problem.has_natural_scores() {
        let job = Job::new(problem, Chosen::new(problem, &NoTerm), outputs, plan);
        dispatch(isa, Drive { job, crew, table, scratch })
    } else {
        let job = Job::new(problem, Plain, outputs, plan);
        dispatch(isa, Drive { job, crew, table, scratch })
    }
}

struct Drive<'a, 'p, T> {
    job: Job<'a, 'p, T>,
    crew: Crew<'a>,
    table: &'a [Entry],
    scratch: &'a mut [f32],
}

impl<T: Scoring> Kernel for Drive<'_, '_, T> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        // Making the bookkeeping of eight tiles would show in a call of one.
        if self.job.plan.layout.tiles == 1 {
            self.items::<S, 1>(simd);
        } else {
            self.items::<S, MAX_TILES>(simd);
        }
    }
}

impl<T: Scoring> Drive<'_, '_, T> {
    /// Items of up to `TILES` tiles.
    fn items<S: Simd, const TILES: usize>(self, simd: S) {
        let plan = &self.job.plan;
        let part = plan.lines_per_thread() * Line::FLOATS;
        let (scratch, sums) = self.scratch.split_at_mut(plan.lines_of_threads() * Line::FLOATS);
        if let Some(sums) = &self.job.outputs.column_sums {
            let dims = self.job.problem.dims();
            let heads = plan.heads();
            for_each_tile(self.crew, heads, (scratch, part), local::<TILES>, |mine, head| {
                // SAFETY: the outputs were checked, and no other thread has this head.
                unsafe { sums.clear(head / dims.kv_heads, head % dims.kv_heads, dims) };
                for nth in 0..plan.items_per_head() {
                    let mine = (&mut *mine.0, &mut *mine.1);
                    Item::run(&self.job, simd, (plan.nth_item(head, nth), None), mine);
                }
            });
            return;
        }
        let item = |index| plan.item(self.job.problem, self.table, index);
        let mut done = 0;
        if let Some(apart) = plan.apart(self.table).filter(|_| !self.job.second_pass) {
            let split_kv = SplitKv { job: &self.job, crew: self.crew, apart, item };
            split_kv.run::<S, TILES>(simd, (scratch, part), sums);
            done = apart.items;
        }
        let rest = plan.items() - done;
        for_each_tile(self.crew, rest, (scratch, part), local::<TILES>, |mine, index| {
            let (index, next) = (done + index, done + index + self.crew.threads);
            let next = (next < plan.items()).then(|| item(next));
            Item::run(&self.job, simd, (item(index), next), mine);
        });
    }
}
