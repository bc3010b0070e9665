//! Envoy's response flags: a small set per stream, printed into access logs.

macro_rules! flags {
    ($($name:ident $short:literal $long:literal,)*) => {
        /// One response flag (Envoy docs: access log, `%RESPONSE_FLAGS%`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ResponseFlag { $($name,)* }

        impl ResponseFlag {
            /// All flags.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// `%RESPONSE_FLAGS%`.
            pub fn short(self) -> &'static str {
                match self { $(Self::$name => $short,)* }
            }

            /// `%RESPONSE_FLAGS_LONG%`.
            pub fn long(self) -> &'static str {
                match self { $(Self::$name => $long,)* }
            }
        }
    };
}

flags! {
    FailedLocalHealthCheck "LH" "FailedLocalHealthCheck",
    NoHealthyUpstream "UH" "NoHealthyUpstream",
    UpstreamRequestTimeout "UT" "UpstreamRequestTimeout",
    LocalReset "LR" "LocalReset",
    UpstreamRemoteReset "UR" "UpstreamRemoteReset",
    UpstreamConnectionFailure "UF" "UpstreamConnectionFailure",
    UpstreamConnectionTermination "UC" "UpstreamConnectionTermination",
    UpstreamOverflow "UO" "UpstreamOverflow",
    NoRouteFound "NR" "NoRouteFound",
    DelayInjected "DI" "DelayInjected",
    FaultInjected "FI" "FaultInjected",
    RateLimited "RL" "RateLimited",
    UnauthorizedExternalService "UAEX" "UnauthorizedExternalService",
    RateLimitServiceError "RLSE" "RateLimitServiceError",
    DownstreamConnectionTermination "DC" "DownstreamConnectionTermination",
    UpstreamRetryLimitExceeded "URX" "UpstreamRetryLimitExceeded",
    StreamIdleTimeout "SI" "StreamIdleTimeout",
    InvalidEnvoyRequestHeaders "IH" "InvalidEnvoyRequestHeaders",
    DownstreamProtocolError "DPE" "DownstreamProtocolError",
    UpstreamMaxStreamDurationReached "UMSDR" "UpstreamMaxStreamDurationReached",
    ResponseFromCacheFilter "RFCF" "ResponseFromCacheFilter",
    NoFilterConfigFound "NFCF" "NoFilterConfigFound",
    DurationTimeout "DT" "DurationTimeout",
    UpstreamProtocolError "UPE" "UpstreamProtocolError",
    NoClusterFound "NC" "NoClusterFound",
    OverloadManager "OM" "OverloadManagerTerminated",
    DnsResolutionFailed "DF" "DnsResolutionFailed",
    DropOverload "DO" "DropOverLoad",
    DownstreamRemoteReset "DR" "DownstreamRemoteReset",
    UnconditionalDropOverload "UDO" "UnconditionalDropOverload",
}

/// The flags of one stream, in the order in which they were set: so Envoy prints them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags {
    set: u64,
    /// Plus one each; more than these keep no order.
    order: [u8; 8],
}

impl ResponseFlags {
    pub fn set(&mut self, flag: ResponseFlag) {
        if self.has(flag) {
            return;
        }
        self.set |= 1 << flag as u8;
        if let Some(seat) = self.order.iter_mut().find(|seat| **seat == 0) {
            *seat = flag as u8 + 1;
        }
    }

    pub fn has(self, flag: ResponseFlag) -> bool {
        self.set & (1 << flag as u8) != 0
    }

    pub fn is_empty(self) -> bool {
        self.set == 0
    }

    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        let ordered =
            self.order.into_iter().filter_map(|seat| ResponseFlag::ALL.get(usize::from(seat).wrapping_sub(1)));
        let is_rest = move |flag: &&ResponseFlag| self.has(**flag) && !self.order.contains(&(**flag as u8 + 1));
        ordered.chain(ResponseFlag::ALL.iter().filter(is_rest)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_in_the_order_in_which_they_were_set() {
        let mut flags = ResponseFlags::default();
        let mut some: Vec<_> = ResponseFlag::ALL.iter().copied().take(10).collect();
        some.swap(0, 7);
        some.iter().chain(&some).for_each(|flag| flags.set(*flag));
        assert_eq!(flags.iter().collect::<Vec<_>>(), some);
    }
}
