//! A problem that is checked and cut into work once, and computed on tensors of many layers.

use crate::attention::{fused_planned, term_floats};
use crate::error::Result;
use crate::outputs::Outputs;
use crate::plan::Plan;
use crate::problem::{Problem, value_error};
use crate::settings::{Algorithm, Settings};
use crate::simd::Isa;
use crate::storage::Input;
use crate::workspace::{Entry, Line, Workspace};

/// Memory for the table of work of an [`AttentionPlan`]. It grows to what a plan needs and keeps that; a
/// plan that finds enough allocates nothing.
#[derive(Debug, Default, Clone)]
pub struct PlanBuffer {
    table: Vec<Entry>,
}

impl PlanBuffer {
    /// An empty buffer; the first plan of sequences of different lengths will allocate.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Attention whose shapes, masks and page tables are checked, and whose work is cut and put in order: what
/// the layers of a model, which differ in their tensors alone, share in one step. The bits are those of
/// [`attention`](crate::attention).
///
/// ```
/// use headwise_kernels::{
///     AttentionPlan, Masking, Outputs, PlanBuffer, Problem, Scale, Settings, View, ViewMut, Workspace,
/// };
///
/// let layers = [[0.5_f32; 2 * 4], [0.25; 2 * 4]];
/// let (mut buffer, mut workspace) = (PlanBuffer::new(), Workspace::new());
/// let x = View::bhsd(&layers[0], [1, 1, 2, 4])?;
/// let problem = Problem::new(x, x, x, Scale::InvSqrtHeadDim, &Masking::default())?;
/// let plan = AttentionPlan::new(&problem, &Settings::default(), &mut buffer)?;
/// for layer in &layers {
///     let x = View::bhsd(layer, [1, 1, 2, 4])?;
///     let mut out = [0.0; 2 * 4];
///     let outputs = Outputs::new(ViewMut::bhsd(&mut out, [1, 1, 2, 4])?);
///     plan.run(x, [x, x], outputs, &mut workspace)?;
///     assert_eq!(out, *layer);
/// }
/// # Ok::<(), headwise_kernels::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AttentionPlan<'a> {
    /// Without tensors.
    problem: Problem<'a, f32>,
    settings: Settings<'a>,
    isa: Isa,
    /// `None`: there are no rows.
    plan: Option<Plan>,
    table: &'a [Entry],
}

impl<'a> AttentionPlan<'a> {
    /// Plans `problem` for calls with these settings. Of its tensors the shapes alone count.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) with [`Algorithm::Unfused`], which has no plan, and as
    /// [`Settings::isa`].
    pub fn new(
        problem: &Problem<'a, f32>,
        settings: &Settings<'a>,
        buffer: &'a mut PlanBuffer,
    ) -> Result<Self> {
        if settings.algorithm == Algorithm::Unfused {
            let expected = "Auto: nothing else is planned".into();
            return value_error("algorithm", settings.algorithm, expected);
        }
        let isa = settings.isa()?;
        let problem = problem.without_tensors();
        let threads = || settings.threads_for(Plan::work(&problem));
        let has_rows = problem.dims().has_rows();
        let plan = has_rows.then(|| Plan::new(&problem, threads(), term_floats(&problem)));
        buffer.table.clear();
        buffer.table.resize(plan.as_ref().map_or(0, Plan::entries), Entry::default());
        if let Some(plan) = &plan {
            plan.tabulate(&problem, &mut buffer.table);
        }
        Ok(Self { problem, settings: *settings, isa, plan, table: &buffer.table })
    }

    /// Computes query, key and value, which have the planned shapes and types, into `outputs`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::Stride`](crate::Error::Stride) or
    /// [`Error::Value`](crate::Error::Value) where a tensor or an output is not as planned,
    /// [`Error::Overflow`](crate::Error::Overflow) where there is no
    /// memory for the workspace. Nothing is written then.
    pub fn run<'t>(
        &self,
        query: impl Into<Input<'t, f32>>,
        [key, value]: [impl Into<Input<'t, f32>>; 2],
        outputs: Outputs<'_, f32>,
        workspace: &mut Workspace,
    ) -> Result<Isa> {
        let problem = self.problem.with_tensors([query.into(), key.into(), value.into()])?;
        outputs.check(&problem)?;
        match self.plan {
            Some(plan) => {
                let scratch = workspace.scratch(plan.lines())?;
                let executor = self.settings.executor;
                fused_planned(
                    &problem,
                    &outputs,
                    (plan, self.table),
                    (self.isa, executor),
                    scratch,
                )?;
            }
            None => outputs.without_rows(problem.dims()),
        }
        Ok(self.isa)
    }

    /// The bytes of workspace with which [`AttentionPlan::run`] allocates nothing, as long as the executor
    /// does not either.
    pub fn workspace_bytes(&self) -> usize {
        let lines = self.plan.as_ref().map_or(0, Plan::lines);
        lines.saturating_mul(size_of::<Line>())
    }
}
