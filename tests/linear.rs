//! The linear layer's product against a naive one in `f64`, on every instruction set.
//!
//! Bound: an output is the sum of chains of at most 768 multiply-adds, added in order, so its error
//! is at most `(768 + inputs / 768 + 3) u Σ|x w|` with `u = 2^-24`; the portable body rounds each
//! product too, which doubles it.

use headwise::{
    Error, Isa, PackedLinear, Product, Rayon, Result, Serial, Settings, View, ViewMut, Workspace,
    linear, linear_all, linear_workspace_bytes,
};
use proptest::prelude::*;
use proptest::sample::select;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// One product: `rows` of x in two batch entries where that divides.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    bias: bool,
    /// x and W transposed in memory.
    transposed: bool,
    seed: u64,
}

impl Case {
    fn weights(&self) -> (Vec<f32>, Vec<f32>) {
        (numbers(self.outputs * self.inputs, self.seed), numbers(self.outputs, self.seed + 1))
    }

    fn matrix<'a>(&self, data: &'a [f32], rows: usize, columns: usize) -> Result<View<'a, f32>> {
        let strides = if self.transposed { [0, 0, 1, rows] } else { [0, 0, columns, 1] };
        View::strided(data, 0, [1, 1, rows, columns], strides.map(|stride| stride as isize))
    }

    fn pack(&self) -> Result<PackedLinear> {
        let (weight, bias) = self.weights();
        let weight = self.matrix(&weight, self.outputs, self.inputs)?;
        PackedLinear::pack(weight, self.bias.then_some(&bias))
    }

    fn x(&self) -> Vec<f32> {
        numbers(self.rows * self.inputs, self.seed + 2)
    }

    /// The output on `settings`, for the given rows of x alone.
    fn run(&self, rows: std::ops::Range<usize>, settings: &Settings<'_>) -> Result<Vec<f32>> {
        let data = self.x();
        let all = self.matrix(&data, self.rows, self.inputs)?;
        let step = all.strides()[2] as usize;
        let x = View::strided(
            &data,
            rows.start * step,
            [1, 1, rows.len(), self.inputs],
            all.strides(),
        )?;
        let weights = self.pack()?;
        let mut out = vec![f32::NAN; rows.len() * self.outputs];
        let view = ViewMut::bhsd(&mut out, [1, 1, rows.len(), self.outputs])?;
        let bytes = linear_workspace_bytes(x, settings);
        let mut workspace = Workspace::with_bytes(bytes)?;
        let isa = linear(x, &weights, view, settings, &mut workspace)?;
        assert_eq!(Some(isa), settings.isa);
        assert_eq!(workspace.bytes(), bytes);
        Ok(out)
    }

    fn check(&self, isa: Isa) -> Result<()> {
        let out = self.run(0..self.rows, &Settings::default().with_isa(isa))?;
        let (weight, bias) = self.weights();
        let (weight, data) = (self.matrix(&weight, self.outputs, self.inputs)?, self.x());
        let x = self.matrix(&data, self.rows, self.inputs)?;
        let at = |view: &View<'_, f32>, r, c| view.get([0, 0, r, c]).map_or(0.0, |&x| f64::from(x));
        for r in 0..self.rows {
            for o in 0..self.outputs {
                let start = if self.bias { f64::from(bias[o]) } else { 0.0 };
                let products = (0..self.inputs).map(|i| at(&x, r, i) * at(&weight, o, i));
                let (exact, size) =
                    products.fold((start, start.abs()), |(sum, size), p| (sum + p, size + p.abs()));
                let steps = 768.0_f64.min(self.inputs as f64) + self.inputs as f64 / 768.0 + 3.0;
                let bound = 2.0 * steps * 2.0_f64.powi(-24) * size;
                let got = f64::from(out[r * self.outputs + o]);
                assert!(
                    (got - exact).abs() <= bound,
                    "{self:?} on {isa}: [{r}][{o}] {got} {exact}"
                );
            }
        }
        Ok(())
    }
}

fn case() -> impl Strategy<Value = Case> {
    let rows = select(vec![1, 2, 3, 4, 5, 7, 11, 12, 13, 24, 47, 48, 49, 60, 97]);
    let inputs = select(vec![1, 2, 7, 16, 33, 64, 192, 384, 767, 768, 769, 1540]);
    let outputs = select(vec![1, 2, 4, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100]);
    (rows, inputs, outputs, any::<bool>(), any::<bool>(), 0..1_000_000_u64).prop_map(
        |(rows, inputs, outputs, bias, transposed, seed)| Case {
            rows,
            inputs,
            outputs,
            bias,
            transposed,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn matches_the_naive_product(case in case()) {
        for isa in Isa::available() {
            case.check(isa).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn a_row_alone_has_the_bits_of_a_row_among_others(case in case(), row in any::<prop::sample::Index>()) {
        let row = row.index(case.rows);
        for isa in Isa::available() {
            let settings = Settings::default().with_isa(isa);
            let among = case.run(0..case.rows, &settings).unwrap_or_else(|error| panic!("{error}"));
            let alone = case.run(row..row + 1, &settings).unwrap_or_else(|error| panic!("{error}"));
            let same = alone.iter().zip(&among[row * case.outputs..]).all(|(a, b)| a.to_bits() == b.to_bits());
            prop_assert!(same, "{case:?} on {isa}, row {row}");
        }
    }
}

#[test]
fn any_number_of_threads() -> Result<()> {
    let case =
        Case { rows: 500, inputs: 400, outputs: 330, bias: true, transposed: false, seed: 1 };
    for isa in Isa::available() {
        let serial = Settings::default().with_isa(isa).with_executor(&Serial);
        let one = case.run(0..case.rows, &serial)?;
        for threads in [2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.unwrap_or_else(|error| panic!("{error}"));
            let parallel = serial.with_executor(&Rayon);
            let many = pool.install(|| case.run(0..case.rows, &parallel))?;
            assert!(one.iter().zip(&many).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }
    Ok(())
}

/// The outputs of all cases, computed at once.
fn run_all(cases: &[Case], settings: &Settings<'_>) -> Result<Vec<Vec<f32>>> {
    let data: Vec<_> = cases.iter().map(Case::x).collect();
    let weights = cases.iter().map(Case::pack).collect::<Result<Vec<_>>>()?;
    let mut outs: Vec<_> =
        cases.iter().map(|case| vec![f32::NAN; case.rows * case.outputs]).collect();
    let mut products = Vec::new();
    let mut bytes = 0;
    for (n, (case, out)) in cases.iter().zip(&mut outs).enumerate() {
        let x = case.matrix(&data[n], case.rows, case.inputs)?;
        bytes = bytes.max(linear_workspace_bytes(x, settings));
        let out = ViewMut::bhsd(out, [1, 1, case.rows, case.outputs])?;
        products.push(Product::new(x, &weights[n], out)?);
    }
    let mut workspace = Workspace::with_bytes(bytes)?;
    let isa = linear_all(&mut products, settings, &mut workspace)?;
    assert_eq!(Some(isa), settings.isa);
    assert_eq!(workspace.bytes(), bytes);
    Ok(outs)
}

/// Together as alone, on one thread and on several.
fn check_together(cases: &[Case]) -> Result<()> {
    for isa in Isa::available() {
        let serial = Settings::default().with_isa(isa).with_executor(&Serial);
        let alone: Vec<_> =
            cases.iter().map(|case| case.run(0..case.rows, &serial)).collect::<Result<_>>()?;
        let check = |together: Vec<Vec<f32>>, threads: usize| {
            for (n, (alone, together)) in alone.iter().zip(&together).enumerate() {
                let same = alone.iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(
                    same && alone.len() == together.len(),
                    "{threads} threads on {isa}: {n} of {cases:?}"
                );
            }
        };
        check(run_all(cases, &serial)?, 1);
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.unwrap_or_else(|error| panic!("{error}"));
            let parallel = serial.with_executor(&Rayon);
            check(pool.install(|| run_all(cases, &parallel))?, threads);
        }
    }
    Ok(())
}

#[test]
fn several_products_at_once() -> Result<()> {
    let case = |rows, inputs, outputs, transposed, seed| Case {
        rows,
        inputs,
        outputs,
        bias: seed % 2 == 0,
        transposed,
        seed,
    };
    // Work for all threads, in one product and in all together; one row; none; copied rows.
    check_together(&[
        case(61, 384, 200, false, 1),
        case(1, 33, 1000, false, 2),
        case(0, 50, 40, false, 3),
        case(300, 1540, 31, true, 4),
        case(5, 1, 1, false, 5),
        case(40, 1024, 65, false, 6),
    ])?;
    check_together(&[case(1, 64, 64, false, 7); 3])?;
    check_together(&[case(0, 64, 64, false, 8), case(0, 1, 3, false, 9)])?;
    check_together(&[])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_products_at_once(cases in prop::collection::vec(case(), 1..6)) {
        check_together(&cases).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let ones = [1.0_f32; 24];
    let weight = View::bhsd(&ones, [1, 1, 3, 4])?;
    let named = |result: Result<_>, part: &str| match result {
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
        Ok(()) => panic!("accepted: {part}"),
    };
    let pack = |weight, bias| PackedLinear::pack(weight, bias).map(drop);
    named(pack(View::bhsd(&ones, [2, 1, 3, 4])?, None), "weight: shape [2, 1, 3, 4]");
    named(pack(View::bhsd(&ones, [1, 1, 0, 4])?, None), "weight: shape [1, 1, 0, 4]");
    named(pack(weight, Some(&[0.0; 2])), "bias: 2 numbers, expected one for each of the 3");

    let weights = PackedLinear::pack(weight, None)?;
    let mut data = [7.0_f32; 24];
    let mut call = |x: View<'_, f32>, shape, strides| {
        let out = ViewMut::strided(&mut data, 0, shape, strides)?;
        linear(x, &weights, out, &Settings::default(), &mut Workspace::new()).map(drop)
    };
    let x = View::bhsd(&ones, [1, 1, 2, 4])?;
    let narrow = View::bhsd(&ones, [1, 1, 2, 3])?;
    named(call(narrow, [1, 1, 2, 3], [0, 0, 3, 1]), "x: shape [1, 1, 2, 3], expected rows of 4");
    named(call(x, [1, 1, 2, 4], [0, 0, 4, 1]), "out: shape [1, 1, 2, 4], expected [1, 1, 2, 3]");
    named(call(x, [1, 1, 2, 3], [0, 0, 1, 2]), "out: strides [0, 0, 1, 2]");
    assert!(matches!(call(x, [1, 1, 3, 3], [0, 0, 3, 1]), Err(Error::Shape { .. })));
    call(View::bhsd(&ones, [1, 0, 2, 4])?, [1, 0, 2, 3], [0, 0, 3, 1])?;
    assert_eq!(data, [7.0; 24]);
    Ok(())
}
