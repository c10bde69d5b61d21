package org.tornadomoe.tornado.graph;

import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.function.BiConsumer;
import java.util.function.Function;
import java.util.function.IntUnaryOperator;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task10;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task11;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task12;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task13;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task14;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task15;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task16;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task17;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task18;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task19;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task20;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task5;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task6;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task7;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task8;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.Task9;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A kernel in Java and its arguments, on the way to being a {@link Stage}. Each array is an argument once, and says
 * what the kernel does to it:
 *
 * <pre>{@code
 * KernelTask.stage("combine", GROUP, m -> groups(m), t -> t.runs(
 *         CombineKernels::combine, t.in(header), t.in(keys), t.in(down), t.out(output), k, h));
 * }</pre>
 */
final class KernelTask {
    /**
     * One for all tasks: TornadoVM (5.2.0) allocates memory for each context of a graph, which it doesn't free with the
     * plan, and each takes three of the graph's nodes.
     */
    private static final KernelContext CONTEXT = new KernelContext();

    private final Set<Object> reads = new LinkedHashSet<>();
    private final Set<Object> writes = new LinkedHashSet<>();

    private KernelTask() {}

    /** One whose groups are along x. */
    static Stage stage(
            String name, int group, IntUnaryOperator groups, Function<KernelTask, BiConsumer<TaskGraph, String>> task) {
        return stage(name, group, groups, m -> 1, task);
    }

    /**
     * @param group work-items of a group
     * @param groupsX groups along x for M tokens
     * @param groupsY groups along y for M tokens
     * @param task names the kernel and its arguments
     */
    static Stage stage(
            String name,
            int group,
            IntUnaryOperator groupsX,
            IntUnaryOperator groupsY,
            Function<KernelTask, BiConsumer<TaskGraph, String>> task) {
        KernelTask arguments = new KernelTask();
        BiConsumer<TaskGraph, String> added = task.apply(arguments);
        return new Stage(
                name, group, groupsX, groupsY, added, List.copyOf(arguments.reads), List.copyOf(arguments.writes));
    }

    /** Groups of a grid that has a work-item for every element. */
    static int elementGroups(int rows, int cols, int group) {
        return Math.toIntExact(Math.ceilDiv((long) rows * cols, group));
    }

    /** An array that the kernel reads. */
    <A extends TornadoNativeArray> A in(A array) {
        reads.add(array);
        return array;
    }

    /** An array that the kernel writes, and whose content before doesn't count. */
    <A extends TornadoNativeArray> A out(A array) {
        writes.add(array);
        return array;
    }

    /** An array of which the kernel reads some and writes some. */
    <A extends TornadoNativeArray> A inout(A array) {
        return out(in(array));
    }

    <A, B, C, D> BiConsumer<TaskGraph, String> runs(Task5<KernelContext, A, B, C, D> kernel, A a, B b, C c, D d) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d);
    }

    <A, B, C, D, E> BiConsumer<TaskGraph, String> runs(
            Task6<KernelContext, A, B, C, D, E> kernel, A a, B b, C c, D d, E e) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e);
    }

    <A, B, C, D, E, F> BiConsumer<TaskGraph, String> runs(
            Task7<KernelContext, A, B, C, D, E, F> kernel, A a, B b, C c, D d, E e, F f) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f);
    }

    <A, B, C, D, E, F, G> BiConsumer<TaskGraph, String> runs(
            Task8<KernelContext, A, B, C, D, E, F, G> kernel, A a, B b, C c, D d, E e, F f, G g) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g);
    }

    <A, B, C, D, E, F, G, H> BiConsumer<TaskGraph, String> runs(
            Task9<KernelContext, A, B, C, D, E, F, G, H> kernel, A a, B b, C c, D d, E e, F f, G g, H h) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h);
    }

    <A, B, C, D, E, F, G, H, I> BiConsumer<TaskGraph, String> runs(
            Task10<KernelContext, A, B, C, D, E, F, G, H, I> kernel, A a, B b, C c, D d, E e, F f, G g, H h, I i) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i);
    }

    <A, B, C, D, E, F, G, H, I, J> BiConsumer<TaskGraph, String> runs(
            Task11<KernelContext, A, B, C, D, E, F, G, H, I, J> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j);
    }

    <A, B, C, D, E, F, G, H, I, J, K> BiConsumer<TaskGraph, String> runs(
            Task12<KernelContext, A, B, C, D, E, F, G, H, I, J, K> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L> BiConsumer<TaskGraph, String> runs(
            Task13<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M> BiConsumer<TaskGraph, String> runs(
            Task14<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M, N> BiConsumer<TaskGraph, String> runs(
            Task15<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M, N> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m,
            N n) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m, n);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M, N, O> BiConsumer<TaskGraph, String> runs(
            Task16<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M, N, O> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m,
            N n,
            O o) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P> BiConsumer<TaskGraph, String> runs(
            Task17<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m,
            N n,
            O o,
            P p) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q> BiConsumer<TaskGraph, String> runs(
            Task18<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m,
            N n,
            O o,
            P p,
            Q q) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R> BiConsumer<TaskGraph, String> runs(
            Task19<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m,
            N n,
            O o,
            P p,
            Q q,
            R r) {
        return (graph, name) -> graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r);
    }

    <A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S> BiConsumer<TaskGraph, String> runs(
            Task20<KernelContext, A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S> kernel,
            A a,
            B b,
            C c,
            D d,
            E e,
            F f,
            G g,
            H h,
            I i,
            J j,
            K k,
            L l,
            M m,
            N n,
            O o,
            P p,
            Q q,
            R r,
            S s) {
        return (graph, name) ->
                graph.task(name, kernel, CONTEXT, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s);
    }
}
