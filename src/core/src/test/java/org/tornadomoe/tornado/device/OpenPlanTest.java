package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.TornadoExecutionResult;

class OpenPlanTest {
    /** As TornadoVM's: each keeps what its own executions gave, and one that is derived knows what it comes from. */
    private static final class Keeping extends TornadoExecutionPlan {
        private final Keeping of;
        private final List<TornadoExecutionResult> kept = new ArrayList<>();
        private Keeping derived = this;

        Keeping() {
            super(new TaskGraph("nothing").snapshot());
            of = this;
        }

        private Keeping(Keeping of) {
            super(new TaskGraph("nothing").snapshot());
            this.of = of;
        }

        @Override
        public TornadoExecutionResult execute() {
            kept.add(super.execute());
            return kept.getLast();
        }

        @Override
        public TornadoExecutionPlan clearProfiles() {
            super.clearProfiles();
            derived = new Keeping(this);
            return derived;
        }

        int keptByAll() {
            int sum = 0;
            for (Keeping plan = derived; ; plan = plan.of) {
                sum += plan.kept.size();
                if (plan.of == plan) {
                    return sum;
                }
            }
        }
    }

    @Test
    void resultsOfEarlierExecutionsAreNotKept() {
        Keeping plan = new Keeping();
        OpenPlan open = new OpenPlan(plan);
        for (int i = 0; i < 500; i++) {
            TornadoExecutionResult result = open.execute(1 + i % 7);
            assertThat(plan.derived.kept.getLast()).isSameAs(result);
            assertThat(plan.keptByAll()).isLessThanOrEqualTo(128);
        }
    }
}
