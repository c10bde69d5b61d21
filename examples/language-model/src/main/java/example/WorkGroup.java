package example;

/**
 * The size of the kernels' work-groups. Each kernel writes out its sums and maxima over a work-group: TornadoVM (5.2)
 * computes wrong addresses in local memory when a method that the kernel calls uses it.
 */
final class WorkGroup {
    /** Work-items per work-group, unless a kernel says otherwise; a power of two. */
    static final int ITEMS = 256;

    private WorkGroup() {}
}
