//! What the request path needs: a router and a recorder.

use crate::recorder::Recorder;
use crate::router::InProcessRouter;
use std::sync::Arc;

/// What the request path needs. Cheap to clone; an endpoint hands it out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DataPlane {
    /// Decides who serves a request.
    pub router: Arc<InProcessRouter>,
    /// Counts what became of it.
    pub recorder: Arc<Recorder>,
}

impl DataPlane {
    /// Of a router and a recorder.
    pub fn new(router: Arc<InProcessRouter>, recorder: Arc<Recorder>) -> Self {
        Self { router, recorder }
    }
}

impl From<&DataPlane> for DataPlane {
    fn from(plane: &DataPlane) -> Self {
        plane.clone()
    }
}
