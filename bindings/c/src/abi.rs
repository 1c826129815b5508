//! The layouts of version 1, on machines of 64 bits. A number that has to be changed here breaks who was
//! built with an older header.

use crate::attention::headwise_attention_call;
use crate::cache::{headwise_append_call, headwise_cache_options, headwise_sequence};
use crate::executor::headwise_executor;
use crate::list::headwise_sizes;
use crate::options::headwise_options;
use crate::outputs::{headwise_outputs, headwise_pick};
use crate::relative_bias::headwise_relative_bias_options;
use crate::sized::Growing;
use crate::state::{headwise_merge_call, headwise_state};
use crate::status::headwise_error;
use crate::tensor::headwise_tensor;
use crate::term::{headwise_row, headwise_score_tile};
use crate::workspace::headwise_workspace_options;

#[test]
fn what_never_changes() {
    assert_eq!(size_of::<headwise_tensor>(), 80);
    assert_eq!(size_of::<headwise_sizes>(), 16);
    assert_eq!(size_of::<headwise_sequence>(), 16);
    assert_eq!(size_of::<headwise_pick>(), 40);
    assert_eq!(size_of::<headwise_state>(), 16);
    assert_eq!(size_of::<headwise_row>(), 32);
    assert_eq!(size_of::<headwise_error>(), 512);
}

#[test]
fn what_may_grow_began_so() {
    assert_eq!(headwise_attention_call::LEAST, 80);
    assert_eq!(headwise_options::LEAST, 368);
    assert_eq!(headwise_outputs::LEAST, 232);
    assert_eq!(headwise_executor::LEAST, 40);
    assert_eq!(headwise_workspace_options::LEAST, 56);
    assert_eq!(headwise_cache_options::LEAST, 80);
    assert_eq!(headwise_append_call::LEAST, 56);
    assert_eq!(headwise_merge_call::LEAST, 56);
    assert_eq!(headwise_relative_bias_options::LEAST, 56);
    assert!(size_of::<headwise_score_tile>() >= 56);
}
