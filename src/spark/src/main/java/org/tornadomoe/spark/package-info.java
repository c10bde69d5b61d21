/** A layer over the rows of an Apache Spark dataset. The program must add Spark 4.2 itself. */
@NullMarked
package org.tornadomoe.spark;

import org.jspecify.annotations.NullMarked;
