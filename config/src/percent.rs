//! Shares of requests (`envoy.type.v3.FractionalPercent`), fixed or named by a runtime key.

use crate::Context;
use weft_control_api::envoy::{
    config::core::v3 as core,
    r#type::v3::{self as pb, fractional_percent::DenominatorType},
};

/// A share: `numerator` out of `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FractionalPercent {
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl FractionalPercent {
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };

    pub fn from_proto(p: pb::FractionalPercent, cx: &mut Context) -> Self {
        let pb::FractionalPercent { numerator, denominator } = p;
        let denominator = match cx.enumeration("denominator", denominator) {
            DenominatorType::Hundred => 100,
            DenominatorType::TenThousand => 10_000,
            DenominatorType::Million => 1_000_000,
        };
        Self { numerator, denominator }
    }

    /// True for the share of `random` values that it says.
    pub fn takes(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}

/// A share that a runtime key may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeFractionalPercent {
    pub default: FractionalPercent,
    /// Empty: the default holds.
    pub runtime_key: String,
}

impl RuntimeFractionalPercent {
    pub fn from_proto(p: core::RuntimeFractionalPercent, cx: &mut Context) -> Option<Self> {
        let core::RuntimeFractionalPercent { default_value, runtime_key } = p;
        let default = cx.required("default_value", default_value)?;
        Some(Self { default: cx.field("default_value", |cx| FractionalPercent::from_proto(default, cx)), runtime_key })
    }
}
