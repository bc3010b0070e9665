//! `http2.*` (all downstream connections) and `cluster.NAME.http2.*`.

crate::stats! {
    /// Envoy's HTTP/2 codec stats.
    pub struct Http2Stats {
        counter cookies_total_bytes_too_large,
        counter deferred_stream_close,
        counter dropped_headers_with_underscores,
        counter goaway_sent,
        counter header_list_size_too_large,
        counter header_overflow,
        counter headers_cb_no_stream,
        counter inbound_empty_frames_flood,
        counter inbound_priority_frames_flood,
        counter inbound_window_update_frames_flood,
        counter keepalive_timeout,
        counter metadata_empty_frames,
        counter nghttp2_downstream_connections,
        counter nghttp2_upstream_connections,
        counter oghttp2_downstream_connections,
        counter oghttp2_upstream_connections,
        counter outbound_control_flood,
        gauge outbound_control_frames_active,
        counter outbound_flood,
        gauge outbound_frames_active,
        gauge pending_send_bytes,
        counter requests_rejected_with_underscores_in_headers,
        counter rx_messaging_error,
        counter rx_reset,
        counter stream_refused_errors,
        gauge streams_active,
        counter trailers,
        counter tx_flush_timeout,
        counter tx_reset,
    }
}
