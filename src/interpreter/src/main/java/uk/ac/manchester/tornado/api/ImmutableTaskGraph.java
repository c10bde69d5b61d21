package uk.ac.manchester.tornado.api;

import uk.ac.manchester.tornado.api.interpreter.Graph;

/** A task graph that no longer changes; plans run these. */
public class ImmutableTaskGraph {
    private final Graph graph;

    ImmutableTaskGraph(Graph graph) {
        this.graph = graph;
    }

    Graph graph() {
        return graph;
    }
}
