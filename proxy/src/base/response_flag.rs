//! Envoy's response flags: a small set per stream, printed into access logs.

macro_rules! flags {
    ($($name:ident $short:literal $long:literal,)*) => {
        /// One response flag (Envoy docs: access log, `%RESPONSE_FLAGS%`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum ResponseFlag { $($name,)* }

        impl ResponseFlag {
            /// All flags in the order in which Envoy prints them.
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

/// The set of flags of one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags(u64);

impl ResponseFlags {
    pub fn set(&mut self, flag: ResponseFlag) {
        self.0 |= 1 << flag as u8;
    }

    pub fn has(self, flag: ResponseFlag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        ResponseFlag::ALL.iter().copied().filter(move |flag| self.has(*flag))
    }
}
