//! HTTP/2 on both sides.

use super::{BodySink, BodySource, Frame, RequestHead, ResponseEvent, ResponseHead};
use crate::base::{ResetReason, StreamError};
use bytes::Bytes;
use http::HeaderMap;
use std::task::{Context, Poll};

pub enum BodyReader {}
pub enum Responder {}
pub enum ClientStream {}

impl BodySource for BodyReader {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        match *self {}
    }
    fn is_end(&self) -> bool {
        match *self {}
    }
    fn remaining(&self) -> Option<u64> {
        match *self {}
    }
}

macro_rules! sink {
    ($t:ident) => {
        impl BodySink for $t {
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
                match *self {}
            }
            fn send_data(&mut self, _: Bytes, _: bool) -> Result<(), StreamError> {
                match *self {}
            }
            fn send_trailers(&mut self, _: HeaderMap) -> Result<(), StreamError> {
                match *self {}
            }
            fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
                match *self {}
            }
            fn reset(&mut self, _: ResetReason) {
                match *self {}
            }
        }
    };
}
sink!(Responder);
sink!(ClientStream);

impl Responder {
    pub fn send_informational(&mut self, _: ResponseHead) -> Result<(), StreamError> {
        match *self {}
    }
    pub fn send_head(&mut self, _: ResponseHead, _: bool) -> Result<(), StreamError> {
        match *self {}
    }
    pub fn poll_closed(&mut self, _: &mut Context<'_>) -> Poll<StreamError> {
        match *self {}
    }
    pub fn close_connection(&mut self) {
        match *self {}
    }
    pub fn bytes_sent(&self) -> (u64, u64) {
        match *self {}
    }
}

impl ClientStream {
    pub fn send_head(&mut self, _: RequestHead, _: bool) -> Result<(), StreamError> {
        match *self {}
    }
    pub fn poll_response(&mut self, _: &mut Context<'_>) -> Poll<Result<ResponseEvent, StreamError>> {
        match *self {}
    }
    pub fn bytes_sent(&self) -> (u64, u64) {
        match *self {}
    }
}
