//! Listener stats: `listener.ADDRESS.*`, `listener.ADDRESS.worker_N.*`, and those of listener filters.

use crate::stats;

stats! {
    /// `listener.ADDRESS.*`
    pub struct ListenerStats {
        counter downstream_cx_destroy,
        counter downstream_cx_overflow,
        counter downstream_cx_overload_reject,
        counter downstream_cx_total,
        counter downstream_cx_transport_socket_connect_timeout,
        counter downstream_global_cx_overflow,
        counter downstream_listener_filter_error,
        counter downstream_listener_filter_remote_close,
        counter downstream_pre_cx_timeout,
        counter no_filter_chain_match,
        counter extension_config_missing,
        counter network_extension_config_missing,
        gauge downstream_cx_active,
        gauge downstream_pre_cx_active,
        histogram(Unspecified) connections_accepted_per_socket_event,
        histogram(Milliseconds) downstream_cx_length_ms,
    }
}

stats! {
    /// `listener.ADDRESS.worker_N.*`
    pub struct WorkerListenerStats {
        counter downstream_cx_total,
        gauge downstream_cx_active,
    }
}

stats! {
    /// `http_inspector.*`
    pub struct HttpInspectorStats {
        counter http10_found,
        counter http11_found,
        counter http2_found,
        counter http_not_found,
        counter read_error,
    }
}

stats! {
    /// Without a prefix: errors of every version and listener.
    pub struct ProxyProtocolRootStats {
        counter downstream_cx_proxy_proto_error,
    }
}

stats! {
    /// `proxy_proto.*`
    pub struct ProxyProtocolStats {
        counter not_found_allowed,
        counter not_found_disallowed,
    }
}

stats! {
    /// `proxy_proto.versions.vN.*`
    pub struct ProxyProtocolVersionStats {
        counter disallowed,
        counter error,
        counter found,
    }
}

stats! {
    /// `tls_inspector.*`
    pub struct TlsInspectorStats {
        counter alpn_found,
        counter alpn_not_found,
        counter client_hello_too_large,
        counter sni_found,
        counter sni_not_found,
        counter tls_found,
        counter tls_not_found,
        histogram(Bytes) bytes_processed,
    }
}
