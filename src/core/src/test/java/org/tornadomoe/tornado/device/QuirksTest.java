package org.tornadomoe.tornado.device;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.reflect.Proxy;
import java.net.URI;
import java.util.AbstractSet;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Iterator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.tornadomoe.kernel.MoeExecutionException;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoDeviceContext;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** Which version does what. */
class QuirksTest {
    @Test
    void versionsAreComparedByNumber() {
        assertThat(new Quirks("5.2.0-jdk25").isAtLeast(5, 2)).isTrue();
        assertThat(new Quirks("5.2.0-jdk25").isAtLeast(5, 3)).isFalse();
        assertThat(new Quirks("5.10.1").isAtLeast(5, 3)).isTrue();
        assertThat(new Quirks("10.0.0-jdk22plus").isAtLeast(9, 9)).isTrue();
        assertThat(new Quirks("8.2.0-jdk22plus").isAtLeast(8, 3)).isFalse();
        assertThat(new Quirks("7").isAtLeast(7, 0)).isTrue();
        assertThat(new Quirks("develop").isAtLeast(5, 2)).isFalse();
    }

    @Test
    void whatHasNoVersionCountsAsTheOldest() {
        assertThat(new Quirks(null).isAtLeast(5, 2)).isTrue();
        assertThat(new Quirks(null).isAtLeast(6, 0)).isFalse();
        assertThat(new Quirks(null).isUntried()).isFalse();
    }

    @Test
    void whatIsNewerThanTheTriedOneIsUntried() {
        assertThat(new Quirks(Quirks.TRIED + "-jdk25").isUntried()).isFalse();
        assertThat(new Quirks("6.0.0-jdk22plus").isUntried()).isTrue();
        assertThat(new Quirks("8.2.0-jdk22plus").isUntried()).isTrue();
    }

    /** As arrays may have by chance. */
    private record Hashed(int number, int hash) {
        @Override
        public int hashCode() {
            return hash;
        }
    }

    @Test
    void arraysThatTornadoVmCannotTellApartAreRefused() {
        Map<Integer, Object> known = new HashMap<>();
        Object first = new Hashed(1, 7);
        Quirks.requireOtherHashes(known, List.of(first, new Hashed(2, 8)));
        Quirks.requireOtherHashes(known, List.of(first, new Hashed(3, 9)));
        assertThatThrownBy(() -> Quirks.requireOtherHashes(known, List.of(new Hashed(4, 7))))
                .isInstanceOf(MoeExecutionException.class)
                .hasMessageContaining("two of the graph's 3 arrays");
    }

    /** A JAR's name, where its module's descriptor has no version. */
    @Test
    void aVersionIsReadFromTheJarsName() {
        assertThat(Quirks.ofJar(URI.create("file:/sdk/share/java/tornado/tornado-api-8.2.0-jdk22plus.jar")))
                .isEqualTo("8.2.0-jdk22plus");
        assertThat(Quirks.ofJar(URI.create("file:/sdk/tornado-api.jar"))).isNull();
        assertThat(Quirks.ofJar(URI.create("jrt:/tornado.api"))).isNull();
    }

    @Test
    void prebuiltTasksAreTheirOwnFromSixOn() {
        assertThat(new Quirks("5.2.0-jdk25").takesPrebuiltTasksForTheFirst()).isTrue();
        assertThat(new Quirks("6.0.0-jdk22plus").takesPrebuiltTasksForTheFirst())
                .isFalse();
    }

    @Test
    void ptxsNamesHaveTaskAndTypesInThem() {
        assertThat(Quirks.ptxName("Layer", "gateUp", "expertGemm", List.of(new IntArray(1), new IntArray(1))))
                .isEqualTo("layer_gateup_expertgemm_arrays_intarray_arrays_intarray");
    }

    @Test
    void aResetIsTakenBackAndAFailureAtThatIsNotHidden() {
        int[] calls = {0};
        TornadoDeviceContext context = context(() -> calls[0]++);
        Quirks.takeResetBack(context);
        assertThat(calls[0]).isEqualTo(1);
        TornadoDeviceContext failing = context(() -> {
            throw new IllegalStateException("gone");
        });
        assertThatIllegalStateException()
                .isThrownBy(() -> Quirks.takeResetBack(failing))
                .withMessage("gone");
    }

    /** A device that takes the first plan it knows for the one that is closed. */
    @Test
    void aPlanIsClosedWhileItsDeviceKnowsNoOther() throws Exception {
        TornadoExecutionPlan plan = new TornadoExecutionPlan(new TaskGraph("none").snapshot());
        long id = plan.getId();
        Set<Long> known = new LinkedHashSet<>(List.of(id + 1, id, id + 2));
        List<Set<Long>> whileClosed = new ArrayList<>();
        Set<Long> watched = new AbstractSet<>() { // as the device's own
                    @Override
                    public boolean add(Long other) {
                        assertThatThrownBy(plan::execute).hasMessageContaining("closed");
                        whileClosed.add(Set.copyOf(known));
                        return known.add(other);
                    }

                    @Override
                    public Iterator<Long> iterator() {
                        return known.iterator();
                    }

                    @Override
                    public int size() {
                        return known.size();
                    }
                };
        Quirks.close(plan, context("getRegisteredPlanIds", () -> watched));
        assertThat(whileClosed).containsExactly(Set.of(id), Set.of(id, id + 1));
        assertThat(known).containsExactlyInAnyOrder(id, id + 1, id + 2);
    }

    @Test
    void aDeviceKnowsTheOtherPlansWhenClosingFailed() {
        TornadoExecutionPlan plan = new TornadoExecutionPlan(new TaskGraph("none").snapshot());
        Set<Long> known = new LinkedHashSet<>(List.of(plan.getId() + 1, plan.getId() + 2)) {
            @Override
            public boolean remove(Object id) {
                if (id.equals(plan.getId() + 2)) {
                    throw new IllegalStateException("not that one");
                }
                return super.remove(id);
            }
        };
        assertThatIllegalStateException()
                .isThrownBy(() -> Quirks.close(plan, context("getRegisteredPlanIds", () -> known)));
        assertThat(known).containsExactlyInAnyOrder(plan.getId() + 1, plan.getId() + 2);
    }

    /** Other threads compile plans meanwhile, which the device then knows. */
    @Test
    @Timeout(60)
    void plansAreClosedWhileOthersAreCompiled() throws Exception {
        Set<Long> known = Collections.synchronizedSet(new HashSet<>());
        AtomicBoolean done = new AtomicBoolean();
        Thread compiling = Thread.ofPlatform().start(() -> {
            for (long id = 0; !done.get(); id++) {
                known.add(1_000_000 + id % 1000);
                known.remove(1_000_000 + (id + 500) % 1000);
            }
        });
        try {
            for (int i = 0; i < 500; i++) {
                TornadoExecutionPlan plan = new TornadoExecutionPlan(new TaskGraph("none").snapshot());
                Quirks.close(plan, context("getRegisteredPlanIds", () -> known));
            }
        } finally {
            done.set(true);
            compiling.join();
        }
    }

    private static TornadoDeviceContext context(Runnable reset) {
        return context("setResetToFalse", () -> {
            reset.run();
            return null;
        });
    }

    private static TornadoDeviceContext context(String asked, Supplier<@Nullable Object> answer) {
        return (TornadoDeviceContext) Proxy.newProxyInstance(
                QuirksTest.class.getClassLoader(), new Class<?>[] {TornadoDeviceContext.class}, (_, method, _) -> {
                    assertThat(method.getName()).isEqualTo(asked);
                    return answer.get();
                });
    }
}
